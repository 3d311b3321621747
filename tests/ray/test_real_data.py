"""Real instruction data with the real GPT-2 tokenizer, where they are at hand."""

import os
from pathlib import Path

import pytest

from tests.conftest import run_raysft

SHARED = Path(os.environ.get("RAYSFT_TEST_INPUTS", Path(__file__).parents[3] / "shared"))
TOKENIZER = SHARED / "models/gpt2-tokenizer"

pytestmark = pytest.mark.skipif(
    not TOKENIZER.is_dir(), reason="needs real inputs: set RAYSFT_TEST_INPUTS to their folder"
)


@pytest.mark.parametrize(
    ("name", "kind", "records"),
    [("gpteacher_codegen.json", "alpaca", 4535), ("gsm8k_test.jsonl", "prompt_completion", 1319)],
)
def test_training_lowers_the_held_out_loss(
    tmp_path: Path, name: str, kind: str, records: int
) -> None:
    overrides = [
        f"data.path={SHARED / 'data' / name}",
        f"model.tokenizer={TOKENIZER}",
        "run.max_steps=4",
        "run.samples=0",
        "batch.micro_batch_size=4",
        "batch.global_batch_size=8",
        "eval.max_records=16",
        "eval.exact_match_records=0",
        "checkpoint.every_steps=0",
    ]
    sets = [word for override in overrides for word in ("--set", override)]
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--json", *sets, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    summary = outcome.summary
    assert (summary["data"]["format"], summary["data"]["num_read"]) == (kind, records)
    assert summary["eval_loss_last"] < summary["eval_loss_first"] - 0.5
