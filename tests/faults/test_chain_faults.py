"""A chain of runs whose job is killed in the middle of a stage."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raysft.runs import rundir
from tests.faults.conftest import Fault, Run, difference, stop

Enter = Callable[[str, str], Fault]
VOWELS = "def vowels(prompt, answer, reference):\n    return sum(c in 'aeiou' for c in answer)\n"
LATER = ("reward", "ppo")


def chain(folder: Path, *, resume: bool = False) -> Run:
    (folder / "mine.py").write_text(VOWELS)
    return Run(
        folder, "data.max_records=400", "batch.seq_len=64", "batch.global_batch_size=32",
        "batch.tokens_per_micro_batch=1024", "align.pairs.pairs.reward=mine.py:vowels",
        "align.pairs.pairs.max_new_tokens=24", "align.reward.run.max_steps=30",
        "align.ppo.run.max_steps=20", "align.ppo.ppo.max_new_tokens=24",
        "align.ppo.ppo.prompts_at_once=4", verb="align", resume=resume,
    )  # fmt: skip


def stage(run: Run, name: str) -> Run:
    """The run of a stage, to look at."""
    found = object.__new__(Run)
    found.folder, found.process = run.folder / name, run.process
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = chain(tmp_path_factory.mktemp("chain"))
    run.end()
    return run


@pytest.mark.parametrize("killed", LATER)
def test_a_killed_chain_goes_on_where_it_was(
    whole: Run, tmp_path: Path, ledger: Enter, killed: str
) -> None:
    """The stages before are taken as they are, and the last one ends as if nothing had happened."""
    fault = ledger("job killed, align", f"in the stage {killed}, after step 12")
    run = chain(tmp_path)
    for name in ("sft", *LATER[: LATER.index(killed) + 1]):  # each within its own time
        stage(run, name).reach(12)
    stop(run.job)
    run.process.wait(60)
    before = (run.folder / "sft" / rundir.SUMMARY).read_bytes()
    again = chain(tmp_path, resume=True)
    again.end()
    assert (run.folder / "sft" / rundir.SUMMARY).read_bytes() == before
    fault.difference = max(difference(stage(again, one), stage(whole, one)) for one in LATER)
    assert fault.difference == 0.0
    fault.ended = "went on with --resume"
