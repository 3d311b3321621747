"""Secrets of the environment, in a run from beginning to end."""

from pathlib import Path

from tests.conftest import run_raysft
from tests.hub_stand_in import serving
from tests.unit.test_secrets import SECRETS, found_in

SHORT = (
    "--set", "run.max_steps=2", "--set", "data.max_records=100", "--set", "scaling.workers=1",
    "--set", "run.samples=0", "--set", "run.push_to_hub=me/x",
)  # fmt: skip


def test_a_run_leaves_no_secret(tmp_path: Path) -> None:
    """Neither in a file, its log and checkpoint among them, nor on the terminal. Ray's token is in
    use, and so is the hub's, to which the model goes at the end.
    """
    words = ("train", "gpt2-tiny-cpu", "--name", "x", "--json", *SHORT)
    environment = {"RAY_AUTH_MODE": "token", "HF_HOME": str(tmp_path / "hf")} | SECRETS
    with serving() as hub:
        outcome = run_raysft(*words, cwd=tmp_path, **hub.environment | environment)
    assert outcome.code == 0, outcome.stderr
    assert outcome.summary["pushed_to"] == f"{hub.url}/me/x"
    card = hub.repos["me/x"]["README.md"].decode()
    assert str(tmp_path) not in card
    assert "--set run.push_to_hub=me/x" in card
    assert f"{outcome.summary['eval_loss_last']:.4f}" in card
    assert {"model.safetensors", "tokenizer.json"} <= hub.repos["me/x"].keys()
    run_dir = tmp_path / "runs/x"
    assert list(run_dir.glob("checkpoints/checkpoint_*/state/*.pt"))
    assert list(run_dir.glob("tensorboard/events*"))
    assert (run_dir / "job.log").exists()
    assert not found_in(run_dir, outcome.stdout, outcome.stderr)
