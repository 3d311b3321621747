"""Secrets of the environment, in a run from beginning to end."""

from pathlib import Path

from tests.conftest import run_raysft
from tests.unit.test_secrets import SECRETS, found_in

SHORT = (
    "--set", "run.max_steps=2", "--set", "data.max_records=100", "--set", "scaling.workers=1",
    "--set", "run.samples=0",
)  # fmt: skip


def test_a_run_leaves_no_secret(tmp_path: Path) -> None:
    """Neither in a file, its log and checkpoint among them, nor on the terminal. Ray's token is in
    use.
    """
    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--json", *SHORT)
    outcome = run_raysft(*words, cwd=tmp_path, RAY_AUTH_MODE="token", **SECRETS)
    assert outcome.code == 0, outcome.stderr
    run_dir = tmp_path / "runs/x"
    assert list(run_dir.glob("checkpoints/checkpoint_*/state/*.pt"))
    assert list(run_dir.glob("tensorboard/events*"))
    assert (run_dir / "job.log").exists()
    assert not found_in(run_dir, outcome.stdout, outcome.stderr)
