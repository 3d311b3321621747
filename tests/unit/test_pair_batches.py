"""Pairs in packs and padded rows: both halves together, each pair once, fillers in none."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from raysft.config.load import load_config
from raysft.data.batch import FILLER, Batch, pack, packed_batches, pad, padded_batches
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData
from raysft.model.attention import PACKED, register
from raysft.train.loss import token_log_probability

LEAD = 4
ANSWERS = [(3, 5), (1, 8), (6, 2), (7, 7), (2, 3)]  # tokens of the chosen and rejected answer


def pairs() -> TokenDataset:
    """Token ids below 60; a half ends in 60 + its number."""
    random = np.random.default_rng(0)
    ids, mask, lengths = [], [], []
    for number, answers in enumerate(ANSWERS):
        prompt = random.integers(0, 60, LEAD)
        for side, answer in enumerate(answers):
            last = 60 + 2 * number + side
            ids += [*prompt, *random.integers(0, 60, answer - 1), last]
            mask += [False] * LEAD + [True] * answer
        lengths.append(2 * LEAD + sum(answers))
    count = np.array(lengths)
    return TokenDataset(
        np.array(ids, np.int32), np.array(mask), np.cumsum(count) - count, count,
        count - 2 * LEAD, np.zeros(5, np.uint16),
        chosen=np.array([LEAD + chosen for chosen, _ in ANSWERS]),
        margins=np.arange(5, dtype=np.float32), reference=np.arange(10.0).reshape(5, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    register()
    torch.manual_seed(0)
    shape = {"vocab_size": 70, "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
    plain = AutoModelForCausalLM.from_config(GPT2Config(**shape), attn_implementation="sdpa").eval()
    packed = copy.deepcopy(plain)
    packed.set_attn_implementation(PACKED)
    return {"pad": plain, "pack": packed}


def sums(model: Any, batch: Batch) -> dict[int, list[float]]:
    """By the number of the pair: log-probability of the chosen and of the rejected answer."""
    assert batch.pairs is not None
    logs = token_log_probability(model, batch, batch.supervised)
    of_halves = torch.zeros(len(batch.pairs.ends)).index_add(0, batch.pairs.half, logs)
    rows = of_halves.view(-1, 2).tolist()
    return dict(zip(batch.pairs.numbers.tolist(), rows, strict=True))


@torch.no_grad()
def by_hand(model: Any, data: TokenDataset) -> dict[int, list[float]]:
    found = {}
    for number in range(len(data)):
        border, rows = int(data.chosen[number]), []  # type: ignore[index]
        for half in (data.tokens(number)[:border], data.tokens(number)[border:]):
            ids = torch.tensor(half.astype(np.int64))
            logs = model(ids[None]).logits[0].log_softmax(-1)
            rows.append(sum(float(logs[t - 1, ids[t]]) for t in range(LEAD, len(ids))))
        found[number] = rows
    return found


@pytest.mark.parametrize("layout", ["pack", "pad"])
def test_sums_of_answers_do_not_depend_on_the_layout(models: dict[str, Any], layout: str) -> None:
    data, make = pairs(), pack if layout == "pack" else pad
    expected = by_hand(models["pad"], data)
    found = sums(models[layout], make(data, np.array([3, 0, 4, 1, 2])))
    assert {n: pytest.approx(row, abs=1e-5) for n, row in expected.items()} == found
    alone = sums(models[layout], make(data, np.array([2])))
    assert alone[2] == pytest.approx(expected[2], abs=1e-5)


@pytest.mark.parametrize("make", [pack, pad])
def test_ends_are_the_last_tokens_by_length_and_fillers_have_none(make: Any) -> None:
    data = pairs()
    batch = make(data, np.array([1, FILLER, 4]))
    assert batch.pairs.numbers.tolist() == [1, 4]
    assert batch.input_ids.flatten()[batch.pairs.ends].tolist() == [62, 63, 68, 69]
    assert batch.pairs.margins.tolist() == [1.0, 4.0]
    assert batch.pairs.reference.tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert torch.bincount(batch.pairs.half).tolist() == [1, 8, 2, 3]
    empty = make(data, np.array([FILLER]))
    assert [len(part) for part in empty.pairs] == [0] * 5


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("packing", [True, False])
def test_each_pair_is_on_one_rank_and_whole(world_size: int, packing: bool) -> None:
    data, everything, seen = pairs(), np.arange(5), []
    counts = set()
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        if packing:
            batches = packed_batches(data, everything, **place, capacity=24)
        else:
            batches = padded_batches(data, everything, **place, micro_batch_size=2)
        counts.add(len(batches))
        for batch in batches:
            assert batch.pairs is not None
            assert batch.input_ids.shape[1] <= 24
            assert len(batch.pairs.ends) == 2 * len(batch.pairs.numbers)
            seen += batch.pairs.numbers.tolist()
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(counts) == 1


def test_a_step_counts_pairs_and_their_halves_apart() -> None:
    sets = ["batch.global_batch_size=2", "batch.seq_len=16", "batch.tokens_per_micro_batch=32"]
    config, data = load_config("gpt2-tiny-cpu", sets), pairs()
    reads = RankData(config, data, data, rank=0, world_size=1)
    step, numbers = reads.at(0), reads.records(0)
    assert step.records == 2
    halves = [LEAD + answer for number in numbers for answer in ANSWERS[number]]
    assert step.tokens == sum(halves)
    assert step.pairs == sum(length**2 for length in halves)
    assert reads.probe.tolist() == data.tokens(0)[: LEAD + ANSWERS[0][0]].tolist()
