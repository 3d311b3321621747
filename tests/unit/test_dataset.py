"""Reading, splitting, sampling and batching, through `prepare`."""

import ast
import copy
import gzip
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.data import cache
from raysft.data.batch import packed_batches, padded_batches
from raysft.data.dataset import (
    Prepared,
    TokenDataset,
    epoch_length,
    epoch_order,
    global_batch,
    prepare,
)
from raysft.data.loader import RankData
from raysft.data.template import install_template
from raysft.errors import UserError


def config_for(path: Path | str, *overrides: str) -> Config:
    return load_config(
        "gpt2-tiny-cpu",
        [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0", *overrides],
    )


def prepared(tokenizer: Any, path: Path | str, *overrides: str) -> Prepared:
    config = config_for(path, *overrides)
    return prepare(config, install_template(copy.deepcopy(tokenizer), config.data.template))


def texts(tokenizer: Any, dataset: TokenDataset) -> list[str]:
    return [tokenizer.decode(dataset.tokens(index)) for index in range(len(dataset))]


ALPACA = {"instruction": "q", "input": "i", "output": "a"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records))
    return path


def numbered(path: Path, letter: str, count: int) -> Path:
    return write(path, [{"instruction": f"{letter}{i}", "output": "x"} for i in range(count)])


LINE = json.dumps(ALPACA).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "message", "left"),
    [
        ("d.jsonl", LINE * 3 + b'{"instruction": \n' + LINE, "line 4: not valid JSON", 4),
        ("d.jsonl", LINE * 3 + b"[]\n" + LINE, "line 4: a record is a JSON object", 4),
        ("d.jsonl", LINE * 3 + b'{"instruction": 3}\n' + LINE, "line 4: field 'instruction'", 4),
        ("d.jsonl", LINE * 3 + b'{"instruction": "\xff"}\n' + LINE, "line 4: not valid UTF-8", 4),
        ("d.jsonl", LINE * 3 + b'{"output": "\\ud83d", "instruction": ""}\n' + LINE,
         "line 4: its text holds half of a surrogate pair", 4),
        ("d.jsonl", LINE * 3 + b"x" * (100 << 20) + b"\n" + LINE, "line 4: longer than 16 MiB", 4),
        ("d.jsonl.gz", gzip.compress(LINE * 3, 0, mtime=0)[:-20],
         "line 3: the compressed data ends too", 2),
        ("d.json", b"[" + LINE + b"," + LINE + b', {"instruction" 1}]',
         "record 3: not valid JSON: Expecting ':' delimiter at line 3", 2),
    ],
)  # fmt: skip
def test_malformed_input_is_named_or_skipped_and_counted(
    tokenizer: Any, tmp_path: Path, name: str, content: bytes, message: str, left: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        prepared(tokenizer, path)
    assert str(raised.value).startswith(f"{path} {message}")
    assert "data.on_bad_record" in str(raised.value)
    result = prepared(tokenizer, path, "data.on_bad_record=skip")
    counts = result.tokenised.counts
    assert (len(result.train), sum(counts.dropped.values())) == (left, 1)
    place = message.partition(":")[0]
    assert list(counts.first_dropped.values()) == [f"{path} {place}"]


def test_missing_and_empty_files(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        prepared(tokenizer, tmp_path / "none.json")
    with pytest.raises(UserError, match="holds no records"):
        prepared(tokenizer, write(tmp_path / "empty.json", []))


def test_empty_responses_are_dropped_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [ALPACA, ALPACA, {"instruction": "q", "output": ""}])
    result = prepared(tokenizer, path)
    assert result.tokenised.counts.dropped == {"the response is empty": 1}
    assert (result.tokenised.counts.num_read, len(result.train)) == (3, 2)


def test_long_records_are_cut_or_dropped(tokenizer: Any, tmp_path: Path) -> None:
    long = {"instruction": "q" * 30, "output": "a" * 4}
    path = write(tmp_path / "d.json", [ALPACA, ALPACA, long])
    cut = prepared(tokenizer, path, "batch.seq_len=16")
    assert texts(tokenizer, cut.train)[2] == "q" * 10 + "\naaaa<|endoftext|>"
    dropped = prepared(tokenizer, path, "batch.seq_len=16", "data.truncate=false")
    assert dropped.tokenised.counts.dropped == {"longer than batch.seq_len": 1}


def test_losing_most_records_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [ALPACA] + [{"instruction": "q", "output": ""}] * 2)
    with pytest.raises(UserError, match="2 of 3 records were dropped"):
        prepared(tokenizer, path)


def test_held_out_records_are_a_fixed_share_and_not_trained_on(
    tokenizer: Any, tmp_path: Path
) -> None:
    records = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(40)]
    path = write(tmp_path / "d.json", records)
    first = prepared(tokenizer, path, "data.eval_fraction=0.25")
    again = prepared(tokenizer, path, "data.eval_fraction=0.25")
    train, heldout = texts(tokenizer, first.train), texts(tokenizer, first.heldout)
    assert (len(train), len(heldout)) == (30, 10)
    assert not set(train) & set(heldout)
    assert heldout == texts(tokenizer, again.heldout)
    assert first.heldout.input_ids.size == first.heldout.lengths.sum()
    other = prepared(tokenizer, path, "data.eval_fraction=0.25", "run.seed=1")
    assert heldout != texts(tokenizer, other.heldout)


def test_a_held_out_file_is_used_instead_of_a_share(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [ALPACA] * 4)
    heldout = write(tmp_path / "e.json", [{"instruction": "e", "output": "f"}])
    result = prepared(tokenizer, path, f"data.eval_path={heldout}", "data.eval_fraction=0.5")
    assert (len(result.train), texts(tokenizer, result.heldout)) == (4, ["e\nf<|endoftext|>"])


def test_without_prompt_mask_the_held_out_loss_is_still_of_responses(
    tokenizer: Any, records_file: Path
) -> None:
    options = ("data.prompt_loss_weight=1", f"data.eval_path={records_file}")
    result = prepared(tokenizer, records_file, *options)
    assert list(result.train.supervised) == list(result.train.lengths - 1)
    assert list(result.train.loss_weight) == list(result.train.lengths - 1)
    prompts = [len(f"say {w}\n") for w in ("one", "two", "three", "four")]
    assert list(result.heldout.lengths - result.heldout.supervised) == prompts


@pytest.mark.parametrize("packed", [False, True])
def test_prompts_weigh_what_was_asked(tokenizer: Any, records_file: Path, packed: bool) -> None:
    """Told of each token, and summed over a step as the loss is divided."""
    result = prepared(tokenizer, records_file, "data.prompt_loss_weight=0.25")
    place = {"rank": 0, "world_size": 1}
    indices = np.arange(4)
    batches = (
        packed_batches(result.train, indices, **place, capacity=64)
        if packed
        else padded_batches(result.train, indices, **place, micro_batch_size=4)
    )
    weights: dict[float, int] = {}
    for batch in batches:
        assert batch.weights is not None
        assert batch.supervised.equal(batch.scored)
        assert batch.weights.equal(torch.where(batch.in_answer, 1.0, 0.25))
        for weight in batch.weights.tolist():
            weights[weight] = weights.get(weight, 0) + 1
    words = ["one", "two", "three", "four"]
    answers = sum(2 * len(w) + 2 for w in words)
    prompts = sum(len(f"say {w}\n") - 1 for w in words)
    assert weights == {1.0: answers, 0.25: prompts}
    assert result.train.loss_weight.sum() == answers + 0.25 * prompts
    assert result.heldout.prompt_weight == 0.0


@pytest.mark.parametrize("weight", [0, 1])
def test_equal_weights_are_no_tensor(tokenizer: Any, records_file: Path, weight: int) -> None:
    """So that the loss is computed as it was before there were weights, to the bit."""
    train = prepared(tokenizer, records_file, f"data.prompt_loss_weight={weight}").train
    (batch,) = packed_batches(train, np.arange(4), rank=0, world_size=1, capacity=128)
    assert batch.weights is None
    trained = batch.scored if weight else batch.scored[batch.in_answer]
    assert batch.supervised.equal(trained)


def test_the_weight_of_prompts_reads_nothing_anew(tokenizer: Any, records_file: Path) -> None:
    key = prepared(tokenizer, records_file).train.input_ids.base
    again = prepared(tokenizer, records_file, "data.prompt_loss_weight=0.5").train.input_ids.base
    assert isinstance(key, np.memmap)
    assert isinstance(again, np.memmap)
    assert key.filename == again.filename


def test_supervised_predictions_are_counted(tokenizer: Any, records_file: Path) -> None:
    result = prepared(tokenizer, records_file)
    words = ["one", "two", "three", "four"]
    assert list(result.train.supervised) == [2 * len(w) + 2 for w in words]
    assert list(result.train.lengths) == [len(f"say {w}\n{w} {w}") + 1 for w in words]


def test_first_tokens_are_no_targets(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [{"text": "abc"}])
    assert list(prepared(tokenizer, path).train.supervised) == [3]


def test_duplicates_are_dropped_when_asked(tokenizer: Any, tmp_path: Path) -> None:
    other = {"instruction": "r", "output": "b"}
    path = write(tmp_path / "d.json", [ALPACA, other, ALPACA, other, ALPACA])
    assert len(prepared(tokenizer, path).train) == 5
    result = prepared(tokenizer, path, "data.drop_duplicates=true")
    assert texts(tokenizer, result.train) == ["q\ni\na<|endoftext|>", "r\nb<|endoftext|>"]
    assert result.num_duplicates_dropped == 3


def test_the_cache_is_found_by_content(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = numbered(tmp_path / "a.json", "q", 5)
    same = numbered(tmp_path / "b.json", "q", 5)

    def entries() -> int:
        return len(list(cache.folder().iterdir()))

    train = prepared(tokenizer, first).train
    assert entries() == 1
    made = next(cache.folder().iterdir()).stat().st_mtime_ns
    again = prepared(tokenizer, same, "data.eval_fraction=0.4", "run.seed=3").train
    assert entries() == 1
    assert next(cache.folder().iterdir()).stat().st_mtime_ns > made  # it counts as used
    assert set(texts(tokenizer, again)) < set(texts(tokenizer, train))
    for override in ("batch.seq_len=64", "data.template=alpaca", "data.max_records=3"):
        before = entries()
        prepared(tokenizer, first, override)
        assert entries() == before + 1
    numbered(first, "r", 5)
    assert texts(tokenizer, prepared(tokenizer, first).train)[0].startswith("r0")


def test_old_entries_of_the_cache_make_room(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    for letter in "abc":
        prepared(tokenizer, numbered(tmp_path / f"{letter}.json", letter, 5))
    assert len(list(cache.folder().iterdir())) == 1


def test_a_sound_set_is_not_found_for_a_bad_record(tokenizer: Any, tmp_path: Path) -> None:
    """What "skip" has put into the cache, "error" still refuses."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n[]\n" + json.dumps(ALPACA) + "\n")
    assert len(prepared(tokenizer, path, "data.on_bad_record=skip").train) == 2
    with pytest.raises(UserError, match=r"d.jsonl line 2: a record is a JSON object"):
        prepared(tokenizer, path)


def test_an_unwritable_cache_says_what_to_set(
    tokenizer: Any, records_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        prepared(tokenizer, records_file)


def mixture(tokenizer: Any, folder: Path) -> TokenDataset:
    """4 records of weight 2, 10 of weight 0.5, 3 of weight 1."""
    paths = [
        numbered(folder / f"{letter}.json", letter, count)
        for letter, count in (("a", 4), ("b", 10), ("c", 3))
    ]
    parts = ", ".join(
        f'{{path = "{path}", weight = {weight}}}'
        for path, weight in zip(paths, (2.0, 0.5, 1.0), strict=True)
    )
    return prepared(tokenizer, f"[{parts}]").train


def test_weights_say_how_often_an_epoch_sees_a_record(tokenizer: Any, tmp_path: Path) -> None:
    dataset = mixture(tokenizer, tmp_path)
    assert list(np.bincount(dataset.source)) == [4, 10, 3]
    assert epoch_length(dataset) == 4 * 2 + 5 + 3
    halves = []
    for epoch in range(40):
        order = epoch_order(dataset, seed=0, epoch=epoch)
        seen = np.bincount(order, minlength=17)
        assert list(seen[:4]) == [2] * 4
        assert sorted(seen[4:14]) == [0] * 5 + [1] * 5
        assert list(seen[14:]) == [1] * 3
        halves.append(seen[4:14])
    assert np.ptp(np.sum(halves, axis=0)) < 20  # 20 of 40 on average: no record is favoured
    assert (np.sum(halves, axis=0) > 0).all()


def test_sources_of_different_formats_mix(tokenizer: Any, tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [ALPACA])
    second = write(tmp_path / "b.json", [{"ask": "q", "answer": "a"}])
    parts = f'["{first}", {{path = "{second}", fields = {{prompt = "ask"}}}}]'
    result = prepared(tokenizer, parts)
    assert result.tokenised.counts.formats == ("alpaca", "prompt_completion")
    assert texts(tokenizer, result.train) == ["q\ni\na<|endoftext|>", "q\na<|endoftext|>"]


def test_no_more_than_max_records_of_each_source(tokenizer: Any, tmp_path: Path) -> None:
    paths = [str(numbered(tmp_path / f"{letter}.json", letter, 1500)) for letter in "ab"]
    result = prepared(tokenizer, json.dumps(paths), "data.max_records=1200")
    assert list(np.bincount(result.train.source)) == [1200, 1200]


def test_every_epoch_sees_every_record_once_in_another_order() -> None:
    seen = np.concatenate([global_batch(order_of(10, seed=3), 10, 4, step) for step in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def order_of(num_records: int, seed: int) -> Any:
    dataset = flat([(2, 1)] * num_records)
    return lambda epoch: epoch_order(dataset, seed, epoch)


def test_sampler_is_a_function_of_seed_and_step() -> None:
    batches = [list(global_batch(order_of(100, seed), 100, 8, 7)) for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]


def test_a_batch_larger_than_the_set_repeats_it() -> None:
    order = order_of(3, seed=0)
    assert sorted(global_batch(order, 3, 7, 0)).count(0) in (2, 3)
    assert len(global_batch(order, 3, 7, 5)) == 7


def flat(records: list[tuple[int, int]]) -> TokenDataset:
    """Records of so many tokens, the last few of them supervised."""
    lengths, supervised = map(np.array, zip(*records, strict=True))
    masks = [np.arange(n) >= n - s for n, s in records]
    return TokenDataset(
        np.repeat(lengths, lengths).astype(np.int32),
        np.concatenate(masks),
        np.cumsum(lengths) - lengths,
        lengths,
        supervised,
        np.zeros(len(records), np.uint16),
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_ranks_share_a_batch_without_loss_or_repetition(
    world_size: int, size: int, packed: bool
) -> None:
    """`size` records in a padded micro-batch, or the tokens of `size` of the longest in a pack."""
    lengths = [3, 9, 5, 4, 8, 7, 6]
    dataset = flat([(n, 2) for n in lengths])
    shares = []
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        indices = np.arange(len(lengths))
        if packed:
            shares.append(packed_batches(dataset, indices, **place, capacity=9 * size))
        else:
            shares.append(padded_batches(dataset, indices, **place, micro_batch_size=size))
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    found: list[int] = []
    for batch in batches:
        if packed:
            assert batch.input_ids.shape[0] == 1
            assert batch.input_ids.numel() <= 9 * size
            found += batch.inputs["cu_seq_lens_q"].diff().tolist()
        else:
            assert len(batch.input_ids) <= size
            found += batch.inputs["attention_mask"].sum(1).tolist()
    assert sorted(n for n in found if n > 1) == sorted(lengths)
    assert sum(len(b.supervised) for b in batches) == 2 * len(lengths)
    assert sum(len(b.scored) for b in batches) == sum(lengths) - len(lengths)
    for batch in batches:
        assert batch.scored[batch.in_answer].equal(batch.supervised)


def test_a_pack_restarts_positions_and_scores_no_first_token() -> None:
    (batch,) = packed_batches(
        flat([(3, 3), (2, 1)]), np.arange(2), rank=0, world_size=1, capacity=8
    )
    assert batch.input_ids.tolist() == [[3, 3, 3, 2, 2]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert batch.inputs["record_lengths"] == [3, 2]
    assert batch.scored.tolist() == batch.supervised.tolist() == [1, 2, 4]


def test_only_a_gpu_gets_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors of a step, on the loader's thread, whose device is that of the worker."""
    pinned: list[tuple[int, ...]] = []
    devices: dict[int, torch.device] = {}

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        assert threading.get_ident() in devices
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: devices.update({threading.get_ident(): device})
    )
    config = load_config("gpt2-tiny-cpu", ["batch.global_batch_size=2", "batch.seq_len=8"])
    data = RankData(config, flat([(3, 3), (2, 1)]), flat([(2, 1)]), rank=0, world_size=1)
    plain = list(data.steps(0, 2, torch.device("cpu")))
    assert not pinned
    for step, wanted in zip(data.steps(0, 2, torch.device("cuda", 1)), plain, strict=True):
        (batch,), (expected,) = step.batches, wanted.batches
        assert batch.input_ids.equal(expected.input_ids)
        assert batch.inputs.keys() == expected.inputs.keys()
    # Ids, scored, supervised, which of them, positions, and the borders twice.
    assert len(pinned) == 2 * 7
    assert list(devices.values()) == [torch.device("cuda", 1)]


def imports_within_data(name: str) -> set[str]:
    """The modules of raysft.data that this one imports, at its top or in its functions."""
    tree = ast.parse((Path(cache.__file__).with_name(f"{name}.py")).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "raysft.data":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raysft.data."):
            found.add(str(node.module).rpartition(".")[2])
    return found


def test_the_code_that_tokenises_is_all_that_pipeline_reaches() -> None:
    reached, todo = set(), {"pipeline"}
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= imports_within_data(name) - reached
    assert reached == set(cache.TOKENISES)


@pytest.mark.parametrize(("name", "voids"), [("tokenize", True), ("audit", False)])
def test_only_code_that_tokenises_voids_the_cache(
    name: str, voids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a copy of the package, in which a comment is added to one module."""
    before = cache.key_for("the same")
    copy = tmp_path / "data"
    shutil.copytree(Path(cache.__file__).parent, copy)
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    assert cache.key_for("the same") == before
    with (copy / f"{name}.py").open("a") as file:
        file.write("# changed\n")
    assert (cache.key_for("the same") != before) == voids
