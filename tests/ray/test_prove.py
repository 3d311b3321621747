"""`doctor --prove` on a cluster that is well, and with faults put in."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.doctor import plain, prove
from raysft.runs.events import Check

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def config() -> Config:
    return load_config("gpt2-tiny-cpu")


def shown(checks: Iterator[Check]) -> dict[str, Check]:
    """By name; printed as they come, for who wants to know the figures (pytest -s)."""
    found = {}
    for check in checks:
        print(check.status, check.name, "|", check.found)
        found[check.name] = check
    return found


def test_all_layouts_resume_and_export_pass_on_two_workers(config: Config, tmp_path: Path) -> None:
    checks = shown(prove.prove(config, tmp_path, workers=2))
    assert [check for check in checks.values() if check.status != "pass"] == []
    assert list(checks) == [
        "parity: 1 worker, ZeRO 0, padded by 4",
        "parity: 2 workers, ZeRO 0, packed",
        "parity: 2 workers, ZeRO 1, padded by 2",
        "parity: 2 workers, ZeRO 2, padded by 4",
        "parity: 2 workers, ZeRO 3, packed",
        "resume: 2 workers, ZeRO 3, packed",
        "export",
    ]
    assert list(tmp_path.iterdir()) == []


def test_faults_are_found(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on prompts as well, and a resumed run that forgets what it was told."""
    monkeypatch.setattr(prove, "LAYOUTS", prove.LAYOUTS[:1])
    monkeypatch.setitem(prove.SETTINGS, "data.prompt_loss_weight", 1.0)
    real_fit = prove.fit

    def forgetful(run: Config, *data: Any, **options: Any) -> Any:
        if options["start_from"] is not None:
            run = run.model_copy(
                update={"optim": run.optim.model_copy(update={"lr": plain.LR / 2})}
            )
        return real_fit(run, *data, **options)

    monkeypatch.setattr(prove, "fit", forgetful)
    checks = shown(prove.prove(config, tmp_path, workers=1))
    assert [check.status for check in checks.values()] == ["warn", "fail", "fail", "fail"]
    _, parity, resume, export = checks.values()
    assert "more than noise at step 1" in parity.found
    assert "steps 4 to 6 are not equal to the bit" in resume.found
    assert "held-out loss" in export.found
    assert all(check.advice for check in checks.values())


def test_a_wrong_rate_is_found_after_the_first_step(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one in a hundred, in the plain loop: the first loss and gradient do not depend on it."""
    monkeypatch.setattr(plain, "LR", 1.01 * plain.LR)
    _, parity = shown(islice(prove.prove(config, tmp_path, workers=1), 2)).values()
    assert parity.status == "fail"
    assert "more than noise at step 2" in parity.found


def test_layouts_that_do_not_run_are_findings_and_nothing_is_left(tmp_path: Path) -> None:
    too_many = load_config("gpt2-tiny-cpu", ["scaling.cpus_per_worker=100000"])
    checks = shown(prove.prove(too_many, tmp_path, workers=1))
    assert len(checks) == 1 + len(prove.LAYOUTS) + 2
    failed = list(checks.values())[1:]
    assert {check.status for check in failed} == {"fail"}
    assert "too few CPUs" in failed[0].found
    assert list(tmp_path.iterdir()) == []


def test_the_folder_goes_when_nobody_asks_for_more(config: Config, tmp_path: Path) -> None:
    checks = prove.prove(config, tmp_path, workers=1)
    next(checks)
    assert list(tmp_path.iterdir()) != []
    checks.close()
    assert list(tmp_path.iterdir()) == []
