"""Runs that learn from rewards, killed while they draw answers, between two steps of an iteration,
and while a checkpoint is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raysft.data import demo
from tests.faults.conftest import Fault, Run, difference, stop

Enter = Callable[[str, str], Fault]
MOMENTS: dict[str, Callable[[Run], None]] = {
    # Of two steps an iteration: what comes after an even one is the drawing.
    "drawing answers": lambda run: run.reach(12),
    "between two steps of an iteration": lambda run: run.reach(13),
    "writing a checkpoint": lambda run: run.reach_checkpoint(),
}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Of a model that knows nothing, on the demo's records."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("start")
    tokenizer = demo.train_tokenizer(demo.generate(2000, seed=3))
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "mine.py").write_text(
        "def vowels(prompt, answer, reference):\n    return sum(c in 'aeiou' for c in answer)\n"
    )
    return (
        "model.init=pretrained", f"model.path={folder}", "model.tokenizer=none",
        "data.max_records=400", "batch.seq_len=64", "batch.global_batch_size=32",
        f"ppo.reward={folder / 'mine.py'}:vowels", "ppo.max_new_tokens=24", "ppo.minibatches=2",
        "ppo.prompts_at_once=4", "run.max_steps=30", "optim.lr=1e-3",
    )  # fmt: skip


@pytest.fixture(scope="session")
def whole(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole"), *settings, verb="ppo")
    run.end()
    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_with_resume(
    whole: Run, settings: tuple[str, ...], tmp_path: Path, ledger: Enter, moment: str
) -> None:
    fault = ledger("job killed, ppo", moment)
    run = Run(tmp_path, *settings, verb="ppo")
    run.reach(11)
    MOMENTS[moment](run)
    stop(run.job)
    run.process.wait(60)
    again = Run(tmp_path, *settings, verb="ppo", resume=True)
    again.end()
    fault.difference = difference(again, whole)
    assert fault.difference == 0.0
    fault.ended = "went on with --resume"
