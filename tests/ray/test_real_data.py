"""Real instruction data with the real GPT-2 tokenizer, where they are at hand."""

import os
from pathlib import Path
from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.data.dataset import Prepared, prepare
from raysft.train.model import load_tokenizer
from tests.conftest import run_raysft

SHARED = Path(os.environ.get("RAYSFT_TEST_INPUTS", Path(__file__).parents[3] / "shared"))
TOKENIZER = SHARED / "models/gpt2-tokenizer"

pytestmark = pytest.mark.skipif(
    not TOKENIZER.is_dir(), reason="needs real inputs: set RAYSFT_TEST_INPUTS to their folder"
)


@pytest.mark.parametrize(
    ("name", "kind", "records", "longest"),
    [
        ("gpteacher_codegen.json", "alpaca", 4535, 512),
        ("gsm8k_test.jsonl", "prompt_completion", 1319, 512),
    ],
)
def test_every_record_is_read_and_ends_with_one_supervised_end_token(
    name: str, kind: str, records: int, longest: int
) -> None:
    data, tokenizer = prepare_real(name)
    report = data.report
    assert (report.format, report.num_read, report.num_dropped) == (kind, records, 0)
    assert len(data.train) == records
    ended = 0
    for index in range(records):
        ids, mask = data.train.tokens(index), data.train.mask(index)
        assert len(ids) <= longest
        assert not mask[0]
        assert mask[-1]
        ends = (ids == tokenizer.eos_token_id).sum()
        assert ends == (ids[-1] == tokenizer.eos_token_id)
        ended += ends
    assert ended == records - report.responses_truncated


def prepare_real(name: str) -> tuple[Prepared, Any]:
    config = load_config(
        "gpt2-tiny-cpu",
        [
            f"data.path={SHARED / 'data' / name}",
            f"model.tokenizer={TOKENIZER}",
            "data.eval_fraction=0",
        ],
    )
    tokenizer = load_tokenizer(config)
    return prepare(config, tokenizer), tokenizer


def test_training_lowers_the_held_out_loss(tmp_path: Path) -> None:
    overrides = [
        f"data.path={SHARED / 'data/gpteacher_codegen.json'}",
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
    assert summary["eval_loss_last"] < summary["eval_loss_first"] - 0.5
