"""Fields, files and splits as `stats`, `preview` and training tell of them."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.config.load import load_config
from raysft.data import cache, read
from raysft.data.preview import previews
from raysft.data.template import install_template
from raysft.errors import UserError
from tests.conftest import run_raysft
from tests.unit.test_audit import audited, names, write
from tests.unit.test_dataset import prepared, texts


def finding(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [found for found in facts["findings"] if found["name"] == name]
    return found


def views(tokenizer: Any, path: Path, *overrides: str, count: int = 3) -> list[Any]:
    options = [f"data.path={path}", "model.tokenizer=unused", *overrides]
    config = load_config("gpt2-tiny-cpu", options)
    return list(previews(config, install_template(copy.deepcopy(tokenizer), "auto"), count))


DOLLY = [
    {"instruction": "q", "context": f"c{i}", "response": "a", "category": "qa" * (i > 0), "id": i}
    for i in range(8)
]


def test_text_that_nobody_reads_is_a_finding_with_its_count(tokenizer: Any, tmp_path: Path) -> None:
    facts = audited(tokenizer, write(tmp_path / "d.jsonl", DOLLY), "data.drop_duplicates=true")
    assert names(facts) == {"unread_fields"}
    assert facts["unread_fields"] == {"category": 7}
    assert finding(facts, "unread_fields")["records"] == 7
    assert "'category' (in 7)" in finding(facts, "unread_fields")["message"]
    assert facts["duplicates"] == 0


def test_duplicates_are_by_all_that_is_trained(tokenizer: Any, tmp_path: Path) -> None:
    base = {"system_prompt": "s", "context": "c", "question": "q", "choices": ["x"], "answer": "a"}
    other: dict[str, Any] = {"choices": ["y"]}
    changed = [base | {key: other.get(key, "other")} for key in base]
    path = write(tmp_path / "d.jsonl", [base, *changed, base | {"id": "x"}])
    options = ("data.eval_fraction=0", "data.drop_duplicates=true")
    assert len(prepared(tokenizer, path, *options).train) == 1 + len(base)


def test_a_mapping_that_no_record_has_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", DOLLY)
    message = (
        r"data.fields.input = 'contxt': no record has that field; \S+ line 1 has 'instruction', "
        r"'context', 'response', 'category', 'id'; did you mean 'context'\?"
    )
    for look in (views, prepared, audited):
        with pytest.raises(UserError, match=message):
            look(tokenizer, path, "data.fields.input=contxt")
        with pytest.raises(UserError, match=r"data.fields.tools = 'zzz': no record has that"):
            look(tokenizer, path, "data.fields.tools=zzz", "data.format=alpaca")


def test_a_mapping_that_a_late_record_has_is_none(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "CHUNK_RECORDS", 4)
    path = write(tmp_path / "d.jsonl", [*DOLLY, DOLLY[0] | {"persona": "s"}])
    *_, last = texts(tokenizer, prepared(tokenizer, path, "data.fields.system=persona").train)
    assert last.startswith("s\nq\nc0")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=r"data.fields.system = 'zzz': no record has"):
            prepared(tokenizer, path, "data.fields.system=zzz")


def test_a_mapping_for_the_whole_mixture(tokenizer: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [{"ask": "q", "completion": "a"}])
    two = write(tmp_path / "b.jsonl", [{"ask": "q", "completion": "a", "persona": "s"}])
    path = json.dumps([str(one), str(two)])
    options = ("data.fields.prompt=ask", "data.fields.system=persona")
    assert len(prepared(tokenizer, path, *options).train) == 2
    ask = 'prompt = "ask"'
    parts = (f'{{path = "{one}", fields = {{{ask}, system = "persona"}}}}',
             f'{{path = "{two}", fields = {{{ask}}}}}')  # fmt: skip
    with pytest.raises(UserError, match=r"data.fields.system = 'persona': no record has"):
        prepared(tokenizer, f"[{', '.join(parts)}]")


def test_files_beside_those_that_are_read_are_a_finding(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / "set" / name, [{"prompt": name, "completion": "a"}])
    (tmp_path / "set" / "notes.txt").write_text("x")
    facts = audited(tokenizer, tmp_path / "set")
    assert facts["num_read"] == 1
    told = finding(facts, "files_left_out")
    assert told["records"] == 2
    assert told["message"].endswith("test.jsonl (of split 'test')")
    assert "notes.txt (none of .json, " in told["message"]
    with pytest.raises(UserError, match="has no split 'dev'; its splits are test, train"):
        audited(tokenizer, tmp_path / "set", "data.split=dev")


def test_advice_for_records_that_are_held_out_and_trained(tokenizer: Any, tmp_path: Path) -> None:
    """Between two files, drop_duplicates changes nothing."""
    clean = [{"prompt": f"q{i}", "completion": "a"} for i in range(9)]
    path, other = write(tmp_path / "d.jsonl", clean), write(tmp_path / "e.jsonl", clean[:3])
    facts = audited(tokenizer, path, f"data.eval_path={other}", "data.drop_duplicates=true")
    assert finding(facts, "heldout_in_train")["records"] == 3
    assert "drop_duplicates" not in finding(facts, "heldout_in_train")["advice"]


def test_a_finding_from_the_cache_names_the_file_that_is_there(
    tokenizer: Any, tmp_path: Path
) -> None:
    records = [*({"prompt": f"q{i}", "completion": "a"} for i in range(9)), "{not json"]
    lost = b'[{"prompt": "lost", "completion": "a"}, {'
    first, second, third = (tmp_path / name for name in ("a b.jsonl", "b.json", "c.jsonl"))
    write(first, records)
    second.write_bytes(lost)
    before = audited(tokenizer, tmp_path)
    first.rename(third)  # behind the other: it is another set
    after = audited(tokenizer, tmp_path)
    assert f"{first} line 10" in json.dumps(before)
    assert f"{third} line 10" in json.dumps(after)
    entries = set(cache.folder().iterdir())
    third.rename(tmp_path / "d.jsonl")
    second.rename(tmp_path / "c.json")
    now = audited(tokenizer, tmp_path)
    assert set(cache.folder().iterdir()) == entries
    assert now["first_dropped"] == {
        f"the rest of {tmp_path / 'c.json'} is lost": f"{tmp_path / 'c.json'} record 2",
        "malformed": f"{tmp_path / 'd.jsonl'} line 10",
    }
    assert "c.jsonl" not in json.dumps(now["findings"])
    with pytest.raises(UserError, match=r"/c.json record 2: "):
        prepared(tokenizer, tmp_path)


def test_jsonl_and_parquet_give_the_same_tokens(tokenizer: Any, tmp_path: Path) -> None:
    def record(question: str, **arguments: Any) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "4"},
            ]
        }

    records = [record("w?", city="Oslo", deep={"x": 1}), record("s?", deep={"y": "z"}, days=2)]
    lines, table = write(tmp_path / "d.jsonl", records), tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_pylist(records), table)
    ours, theirs = (prepared(tokenizer, path).train for path in (lines, table))
    assert texts(tokenizer, ours) == texts(tokenizer, theirs)
    assert "null" not in "".join(texts(tokenizer, theirs))


def test_a_bad_value_of_a_table_is_a_bad_record_with_its_row(
    tokenizer: Any, tmp_path: Path
) -> None:
    words = pa.array([b"fine", b"caf\xe9", b"good"])
    answers = pa.Array.from_buffers(pa.string(), 3, words.buffers())
    far = pa.array([2**62] * 3).cast(pa.timestamp("us", "Nowhere/Land"))
    path = tmp_path / "d.parquet"
    table = pa.table({"prompt": ["a", "b", "c"], "completion": answers, "when": far})
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"d.parquet row 2: field 'completion' is not valid UTF-8"):
        prepared(tokenizer, path)
    facts = audited(tokenizer, path)
    assert (facts["num_read"], facts["num_conversations"]) == (3, 2)
    assert [view.problem for view in views(tokenizer, path)] == [
        None, "field 'completion' is not valid UTF-8", None
    ]  # fmt: skip
    pq.write_table(table.rename_columns(["prompt", "note", "completion"]), path)
    with pytest.raises(UserError, match=r"'completion' is timestamp\[us, tz=Nowhere/Land\], not"):
        prepared(tokenizer, path)


def test_a_doubled_column_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt,completion,completion\nq,a,b\n")
    with pytest.raises(UserError, match="'completion' is the name of several columns"):
        prepared(tokenizer, path)
    path.write_text("prompt,completion,,\nq,a,,\n")
    assert len(prepared(tokenizer, path, "data.eval_fraction=0").train) == 1


def test_a_preview_reads_no_more_than_it_shows(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "d.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(9000)]
    )
    seen: list[int] = []
    lines = read.READERS[".jsonl"][1]

    def counted(*given: Any) -> Any:
        for number, value in lines(*given):
            seen.append(number)
            yield number, value

    monkeypatch.setitem(read.READERS, ".jsonl", ("line", counted))
    assert len(views(tokenizer, path)) == 3
    assert max(seen) <= 2 * read.CHUNK_RECORDS


def test_what_the_command_line_says(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "set").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / "set" / name, DOLLY)
    words = ("gpt2-tiny-cpu", "--set", "data.path=set", "--set", "model.tokenizer=./tokenizer")
    shown = run_raysft("data", "preview", *words, cwd=tmp_path)
    assert (shown.code, shown.stdout.count("set/train.jsonl line")) == (0, 3)
    assert "|c|0|" in shown.stdout
    assert "warning: files that are not read: set/test.jsonl (of split 'test')" in shown.stderr
    typo = run_raysft("data", "preview", *words, "--set", "data.fields.input=contxt", cwd=tmp_path)
    assert (typo.code, "Traceback" in typo.stderr) == (2, False)
    assert "error: data.fields.input = 'contxt': no record has that field" in typo.stderr
