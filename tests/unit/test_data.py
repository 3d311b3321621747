"""Reading, formats, split, sampler and batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.data.batch import rank_batches
from raysft.data.dataset import Prepared, TokenDataset, flatten, global_batch, prepare
from raysft.data.formats import RecordError, alpaca, detect_format, prompt_completion, to_messages
from raysft.data.read import find_files, looks_like_hub_id
from raysft.data.tokenize import Example
from raysft.errors import UserError


def config_for(path: Path | str, *overrides: str) -> Config:
    return load_config(
        "gpt2-tiny-cpu",
        [f"data.path={path}", "model.tokenizer=unused", "data.eval_fraction=0", *overrides],
    )


def prepared(tokenizer: Any, path: Path | str, *overrides: str) -> Prepared:
    return prepare(config_for(path, *overrides), tokenizer)


def texts(tokenizer: Any, dataset: TokenDataset) -> list[str]:
    return [tokenizer.decode(dataset.tokens(index)) for index in range(len(dataset))]


ALPACA = {"instruction": "q", "input": "i", "output": "a"}


def test_alpaca_joins_input_and_takes_output_or_response() -> None:
    assert [m.content for m in alpaca(ALPACA)] == ["q\ni", "a"]
    for rest in (
        {"input": "", "response": "a"},
        {"input": None, "output": "a"},
        {"input": " ", "output": "a"},
        {"output": "a"},
    ):
        assert [m.content for m in alpaca({"instruction": "q"} | rest)] == ["q", "a"]


def test_prompt_completion_has_two_pairs_of_names() -> None:
    assert [m.content for m in prompt_completion({"prompt": "q", "completion": "a"})] == ["q", "a"]
    assert [m.content for m in prompt_completion({"question": "q", "answer": "a"})] == ["q", "a"]


def test_formats_are_detected() -> None:
    assert detect_format(ALPACA) == "alpaca"
    assert detect_format({"question": "q", "answer": "a"}) == "prompt_completion"
    with pytest.raises(RecordError, match="its fields are 'conversations'"):
        detect_format({"conversations": []})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "q"}, "no field 'output' or 'response'; its fields are 'instruction'"),
        ({"instruction": 3, "output": "a"}, "field 'instruction' is int, not text"),
        ([1, 2], "a record is a JSON object, but this is list"),
        ({"instruction": "q", "output": " \n"}, "the response is empty"),
    ],
)
def test_bad_records_say_why(record: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        to_messages(record, alpaca)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    else:
        path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(
    tokenizer: Any, tmp_path: Path, suffix: str
) -> None:
    other = {"instruction": "r", "input": "", "output": "b"}
    path = write(tmp_path / f"d{suffix}", [ALPACA, other])
    result = prepared(tokenizer, path)
    assert texts(tokenizer, result.train) == ["q\ni\na<|endoftext|>", "r\nb<|endoftext|>"]
    assert result.report.format == "alpaca"


def test_a_folder_a_glob_and_a_list_are_all_their_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, [ALPACA])
    (tmp_path / "notes.txt").write_text("not data")
    both = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert find_files(str(tmp_path)) == both
    assert find_files(str(tmp_path / "*.jsonl")) == both
    with pytest.raises(UserError, match=r"notes.txt is none of .json, .jsonl, .parquet"):
        find_files(str(tmp_path / "*"))


def test_what_is_a_hub_id() -> None:
    assert looks_like_hub_id("tatsu-lab/alpaca")
    for path in ("./data/x", "data/x.json", "/data/x", "../data", "x", "a/b/c"):
        assert not looks_like_hub_id(path)


def test_malformed_line_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ALPACA) + '\n{"instruction": \n' + json.dumps(ALPACA) + "\n")
    with pytest.raises(UserError, match=r"d.jsonl line 2: not valid JSON"):
        prepared(tokenizer, path)
    result = prepared(tokenizer, path, "data.on_bad_record=skip")
    assert result.report.dropped == {"malformed": 1}
    assert result.report.first_dropped == {"malformed": f"{path} line 2"}
    assert len(result.train) == 2


def test_malformed_json_file_names_line_and_column(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('[\n{"instruction": "q" "output": "a"}\n]')
    with pytest.raises(UserError, match=r"d.json line 2 column 21"):
        prepared(tokenizer, path)


def test_bad_utf8_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(ALPACA).encode() + b'\n{"instruction": "\xff"}\n')
    with pytest.raises(UserError, match=r"d.jsonl line 2: not valid UTF-8"):
        prepared(tokenizer, path)


def test_a_broken_parquet_file_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"d.parquet: not a readable Parquet file"):
        prepared(tokenizer, path)


def test_missing_and_empty_files(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        prepared(tokenizer, tmp_path / "none.json")
    with pytest.raises(UserError, match="holds no records"):
        prepared(tokenizer, write(tmp_path / "empty.jsonl", []))


def test_empty_responses_are_dropped_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [ALPACA, ALPACA, {"instruction": "q", "output": ""}])
    result = prepared(tokenizer, path)
    assert result.report.dropped == {"the response is empty": 1}
    assert (result.report.num_read, result.report.num_records) == (3, 2)


def test_long_records_are_cut_or_dropped(tokenizer: Any, tmp_path: Path) -> None:
    long = {"instruction": "q" * 30, "output": "a" * 4}
    path = write(tmp_path / "d.json", [ALPACA, ALPACA, long])
    cut = prepared(tokenizer, path, "batch.seq_len=16")
    assert cut.report.prompts_truncated == 1
    assert texts(tokenizer, cut.train)[2] == "q" * 10 + "\naaaa<|endoftext|>"
    dropped = prepared(tokenizer, path, "batch.seq_len=16", "data.truncate=false")
    assert dropped.report.dropped == {"longer than batch.seq_len": 1}


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
    as_text = [f"{q.content}\n{a.content}<|endoftext|>" for q, a in first.heldout_messages]
    assert as_text == heldout
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
    options = ("data.mask_prompt=false", f"data.eval_path={records_file}")
    result = prepared(tokenizer, records_file, *options)
    assert result.train.loss_mask.all()
    prompts = [len(f"say {w}\n") for w in ("one", "two", "three", "four")]
    assert list(result.heldout.lengths - result.heldout.supervised) == prompts


def test_report_counts_supervised_predictions(tokenizer: Any, records_file: Path) -> None:
    report = prepared(tokenizer, records_file).report
    words = ["one", "two", "three", "four"]
    assert report.supervised_tokens == sum(2 * len(w) + 2 for w in words)
    assert report.tokens == sum(len(f"say {w}\n{w} {w}") + 1 for w in words)


def test_every_epoch_sees_every_record_once_in_another_order() -> None:
    seen = np.concatenate([global_batch(10, 4, seed=3, step=step) for step in range(5)])
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_sampler_is_a_function_of_seed_and_step() -> None:
    assert list(global_batch(100, 8, 0, 7)) == list(global_batch(100, 8, 0, 7))
    assert list(global_batch(100, 8, 0, 7)) != list(global_batch(100, 8, 1, 7))


def test_a_batch_larger_than_the_set_repeats_it() -> None:
    assert sorted(global_batch(3, 7, seed=0, step=0))[:7].count(0) in (2, 3)
    assert len(global_batch(3, 7, seed=0, step=5)) == 7


def example(length: int, supervised: int) -> Example:
    mask = np.arange(length) >= length - supervised
    return Example(np.full(length, length, dtype=np.int32), mask, 0, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_ranks_share_a_batch_without_loss_or_repetition(
    world_size: int, micro_batch_size: int
) -> None:
    lengths = [3, 9, 5, 4, 8, 7, 6]
    dataset = flatten(example(n, 2) for n in lengths)
    shares = [
        rank_batches(
            dataset,
            np.arange(len(lengths)),
            rank=rank,
            world_size=world_size,
            micro_batch_size=micro_batch_size,
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert all(len(b.input_ids) <= micro_batch_size for b in batches)
    real = [int(n) for b in batches for n in b.attention_mask.sum(1)]
    assert sorted(n for n in real if n > 1) == sorted(lengths)
    assert sum(int(b.loss_mask.sum()) for b in batches) == 2 * len(lengths)
    for batch in batches:
        assert not (batch.loss_mask & ~batch.attention_mask).any()


def test_first_tokens_are_no_targets() -> None:
    dataset = flatten([example(4, 4), example(3, 1)])
    assert list(dataset.supervised) == [3, 1]
