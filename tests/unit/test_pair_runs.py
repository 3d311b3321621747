"""What a run of pairs does with its config, and with the reference's two numbers a pair."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysft.config.load import load_config
from raysft.data.loader import RankData
from raysft.errors import UserError
from raysft.estimate.report import estimate
from raysft.runs import rundir
from raysft.train.objectives import reference
from raysft.verbs.pair_config import as_records, for_pairs, with_room
from raysft.verbs.registry import VERBS
from tests.unit.test_pair_batches import pairs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.seq_len=128", "batch.tokens_per_micro_batch=255"], "255 is less than 256 = 2 x"),
        (["model.dropout=0.1"], "leave it out, pairs are compared without dropout"),
        (["data.mask_prompt=false"], "tell no two answers apart"),
        (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], '"ipo" has none'),
    ],
)
def test_what_does_not_go_with_pairs_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VERBS["dpo"].plan(load_config("gpt2-tiny-cpu", overrides))


def test_packs_have_room_for_both_halves_and_nothing_is_dropped_out() -> None:
    sets = ["batch.seq_len=128", "batch.micro_batch_size=3", "batch.tokens_per_micro_batch=none"]
    config = for_pairs(load_config("gpt2-tiny-cpu", sets))
    assert config.batch.pack_tokens == 3 * 2 * 128
    assert config.model.dropout == 0.0
    automatic = for_pairs(load_config("gpt2-tiny-cpu", [*sets[:1], *sets[2:], AUTO]))
    assert automatic.left_open == ("batch.tokens_per_micro_batch",)
    chosen = automatic.batch.model_copy(update={"tokens_per_micro_batch": 130})
    assert with_room(automatic.model_copy(update={"batch": chosen})).batch.pack_tokens == 256


AUTO = "batch.tokens_per_micro_batch=auto"


def test_the_plan_says_the_loss_as_an_equation() -> None:
    rows = dict(VERBS["dpo"].plan(load_config("gpt2-tiny-cpu", ["dpo.beta=0.2"])))
    assert rows["loss"].startswith("-log sigmoid(0.2 h) + 1 x NLL a token of chosen; h = ")
    assert rows["global batch"].startswith("64 pairs = packs of at most 2,048 tokens")
    ipo = ["dpo.loss=ipo", "dpo.nll_weight=0"]
    assert dict(VERBS["dpo"].plan(load_config("gpt2-tiny-cpu", ipo)))["loss"].startswith("(h - 5)²")
    rows = dict(
        VERBS["reward"].plan(
            load_config("gpt2-tiny-cpu", ["reward_model.center=0", "reward_model.margins=true"])
        )
    )
    assert rows["loss"] == "-log sigmoid(r(chosen) - r(rejected) - margin); r: at the last token"


def test_the_reference_of_a_run_is_read_again_to_the_bit(tmp_path: Path) -> None:
    config, data = load_config("gpt2-tiny-cpu", []), pairs()
    reads = RankData(config, data, data, rank=0, world_size=1)
    file = tmp_path / rundir.REFERENCE
    assert reference.read(file, reads) is None
    values = np.random.default_rng(0).normal(size=(5, 2))
    reference.write(file, {"train": values, "heldout": -values})
    found = reference.read(file, reads)
    assert found is not None
    assert np.array_equal(found["train"], values)
    assert np.array_equal(found["heldout"], -values)
    assert list(tmp_path.iterdir()) == [file]
    fewer = replace(data, starts=data.starts[:3])
    assert reference.read(file, replace(reads, train=fewer)) is None  # of other pairs
    file.write_bytes(file.read_bytes()[:100])  # damaged: computed again
    assert reference.read(file, reads) is None


def test_the_estimate_counts_both_halves() -> None:
    sets = ["batch.seq_len=128", "batch.tokens_per_micro_batch=none", "batch.global_batch_size=8"]
    config = load_config("gpt2-tiny-cpu", sets)
    single, pair = (
        estimate(one, device="h100", memory_gib=80.0) for one in (config, as_records(config))
    )
    assert pair["micro_batch_tokens"] == 2 * single["micro_batch_tokens"] == 256
    assert pair["step"]["sequences"] == 2 * single["step"]["sequences"] == 16
    assert pair["step"]["compute_s"] == pytest.approx(2 * single["step"]["compute_s"])
