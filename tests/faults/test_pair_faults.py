"""Faults of runs that learn from pairs: two of each verb."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raysft.data import demo
from raysft.runs import rundir
from tests.faults.conftest import Fault, Run, difference, stop
from tests.faults.test_faults import healed

Enter = Callable[[str, str], Fault]
VERBS = ("dpo", "reward")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's records: the right answer, and another record's."""
    folder = tmp_path_factory.mktemp("pairs")
    records = demo.generate(600, seed=3)
    lines = [
        {"instruction": one["instruction"], "input": one["input"], "chosen": one["output"],
         "rejected": other["output"]}
        for one, other in zip(records, [*records[1:], records[0]], strict=True)
    ]  # fmt: skip
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    demo.train_tokenizer(demo.generate(8200, 0)).save_pretrained(folder / "tokenizer")
    return file


def settings(pairs: Path) -> tuple[str, ...]:
    return (
        f"data.path={pairs}", f"model.tokenizer={pairs.parent / 'tokenizer'}",
        "batch.seq_len=128", "batch.global_batch_size=16",
    )  # fmt: skip


@pytest.fixture(scope="session", params=VERBS)
def whole(
    request: pytest.FixtureRequest, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run]:
    """A verb, and its run that nothing happened to."""
    run = Run(tmp_path_factory.mktemp(request.param), *settings(pairs), verb=request.param)
    run.end()
    return request.param, run


def test_a_killed_worker_is_healed(
    whole: tuple[str, Run], pairs: Path, tmp_path: Path, ledger: Enter
) -> None:
    verb, undisturbed = whole
    fault = ledger(f"worker killed, {verb}", "the second one, after step 12")
    run = Run(tmp_path, *settings(pairs), verb=verb)
    run.reach(12)
    stop(run.workers()[1])
    healed(run, fault, undisturbed)


def test_a_killed_run_goes_on_with_resume(
    whole: tuple[str, Run], pairs: Path, tmp_path: Path, ledger: Enter
) -> None:
    """DPO without the reference's numbers, which are computed again by the model at the start."""
    verb, undisturbed = whole
    fault = ledger(f"job killed, {verb}", "after step 22")
    run = Run(tmp_path, *settings(pairs), verb=verb)
    run.reach(22)
    stop(run.job)
    run.process.wait(60)
    if verb == "dpo":
        reference = run.folder / rundir.REFERENCE
        assert reference.is_file()
        shutil.move(reference, tmp_path / "kept.npz")
    again = Run(tmp_path, *settings(pairs), verb=verb, resume=True)
    again.end()
    fault.difference = difference(again, undisturbed)
    assert fault.difference == 0.0
    fault.ended = "went on with --resume"
