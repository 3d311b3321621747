"""Files of every kind to raw records, sound and damaged."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.config.data import Data, Source
from raysft.data import json_files, tables
from raysft.data.containers import SUFFIXES, File
from raysft.data.raw import Bad, Line
from raysft.data.read import read_chunks
from raysft.data.shapes import Unreadable
from raysft.data.sources import find_files, identity, looks_like_hub_id, sources
from raysft.errors import UserError

RECORDS = [{"instruction": f"q{i}\n", "output": f"a, {i} é"} for i in range(2500)]


def content(kind: str, records: list[dict[str, Any]]) -> bytes:
    """A file of a kind such as `.csv`."""
    binary = io.BytesIO()
    table = pa.Table.from_pylist(records) if kind in (".parquet", ".arrow") else None
    if kind == ".parquet":
        pq.write_table(table, binary)
    elif kind == ".arrow":
        with pa.ipc.new_stream(binary, table.schema) as writer:
            writer.write_table(table)
    if table is not None:
        return binary.getvalue()
    text = io.StringIO(newline="")
    if kind in (".csv", ".tsv"):
        rows = csv.DictWriter(text, records[0], delimiter="\t" if kind == ".tsv" else ",")
        rows.writeheader()
        rows.writerows(records)
    elif kind == ".json":
        json.dump(records, text, indent=1, ensure_ascii=False)
    else:
        text.writelines(json.dumps(record) + "\n" for record in records)
    return text.getvalue().encode()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """A file of the kind and compression that its name says."""
    kind, compression = File(path.name, 0).suffixes
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(COMPRESS[compression](content(kind, records)))
    return path


def files(path: Path | str, **keys: str) -> list[str]:
    return [file.name for file in find_files(Source(path=str(path), **keys)).files]


def values(path: Path | str) -> list[Any]:
    chunks = list(read_chunks(Source(path=str(path)), 0, seed=0))
    assert all(len(chunk.numbers) == len(chunk.values) for chunk in chunks)
    found = [value for chunk in chunks for value in chunk.values]
    return [json.loads(v.json) if isinstance(v, Line) else v for v in found]


def places(path: Path) -> list[str]:
    chunks = read_chunks(Source(path=str(path)), 0, seed=0)
    return [f"{chunk.place} {number}" for chunk in chunks for number in chunk.numbers]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", RECORDS)
    kind = suffix.split(".")[1]
    assert values(path) == RECORDS
    assert values(f"file://{path}") == RECORDS
    units = {"json": "record 3", "csv": "line 7", "tsv": "line 7"}
    unit = units.get(kind, "row 3" if kind in ("parquet", "arrow") else "line 3")
    assert places(path)[2] == f"{path} {unit}"


@pytest.mark.parametrize("block", [3, 7, 64])
def test_a_list_is_read_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "d.json"
    records = [{"a": 'x"]}\\', "b": [1, {"c": None}]}, {}, {"n": -12.5e3}, 12, "é日"]
    for text in (json.dumps(records), json.dumps(records, indent=2, ensure_ascii=False)):
        path.write_text(f" \n{text}\n")
        assert values(path) == records
    path.write_text("[]")
    assert values(path) == []


def test_a_json_file_may_hold_one_record_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", RECORDS[:3]).rename(tmp_path / "d.json")
    assert values(path) == RECORDS[:3]


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]\n[{"a": 3}, {"a": 4}]\n',
        '[{"a": 1}]\n[{"a": 2}]\r\n[]\n[{"a": 3}, {"a": 4}]',
        '[{"a": 1}, {"a": 2}, {"a": 3}][{"a": 4}]',
        '{\n "a": 1\n}\n{\n "a": 2\n}{"a": 3}\n[{"a": 4}]',
        '{"a": 1}\n{"a": 2}\n{"a": 3}\n{"a": 4}',
        '{"a": 1}\n[{"a": 2}, {"a": 3}]\n{"a": 4}\n',
        '{"a":\n1}\n{"a": 2}\n[{"a": 3}, {"a": 4}]',
        '\ufeff[{"a": 1}, {"a": 2}]\n{"a": 3}\n{"a": 4}',
    ],
)
def test_all_of_a_json_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "d.json"
    path.write_bytes(text.encode())
    assert values(path) == [{"a": n} for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".jsonl.gz"])
def test_other_encodings_of_unicode(tmp_path: Path, suffix: str, encoding: str) -> None:
    kind, compression = File(suffix, 0).suffixes if suffix.count(".") > 1 else (suffix, "")
    records = [{"instruction": f"q{i}, ü 日", "output": "𝄞"} for i in range(1500)]
    path = tmp_path / f"d{suffix}"
    text = content(kind, records).decode()
    path.write_bytes(COMPRESS[compression](text.encode(encoding)))
    assert values(path) == records


def test_a_cut_utf_16_file_keeps_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(('{"a": 1}\n' * 9 + "\ud800").encode("utf-16", "surrogatepass"))
    *found, bad = values(path)
    assert found == [{"a": 1}] * len(found)
    assert "utf-16" in bad.message


@pytest.mark.parametrize("name", ["d.json", "d.csv"])
def test_windows_1252_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = '[{"a": "caf\xe9"}, 1]' if name == "d.json" else "a\ncaf\xe9\n"
    path.write_bytes(text.encode("cp1252"))
    assert "It may be Windows-1252: iconv -f windows-1252" in values(path)[0].message


def table_file(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:  # as Feather is
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_a_bad_value_of_a_table_is_unreadable_where_it_is_read(tmp_path: Path, name: str) -> None:
    latin = pa.array([b"fine", b"caf\xe9", None]).cast(pa.binary())
    days = pa.array([0, 2**62, None], pa.int64())
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "completion": pa.Array.from_buffers(pa.string(), 3, latin.buffers()),
            "when": days.cast(pa.timestamp("us")),
            "zoned": days.cast(pa.timestamp("us", "Nowhere/Land")),
            "turns": pa.array([[{"text": "x", "at": 1}], [{"text": "y", "at": 2**62}], []]).cast(
                pa.list_(pa.struct({"text": pa.string(), "at": pa.int64()}))
            ),
        }
    )
    nested = pa.list_(pa.struct({"text": pa.string(), "at": pa.timestamp("us")}))
    index = table.schema.get_field_index("turns")
    table = table.set_column(index, "turns", table["turns"].cast(nested))
    found = values(table_file(tmp_path / name, table))
    assert [row["prompt"] for row in found] == ["a", "b", "c"]
    assert [row["completion"] for row in found] == ["fine", Unreadable("is not valid UTF-8"), None]
    assert [row["turns"][0]["text"] for row in found[:2]] == ["x", "y"]
    assert "is timestamp[us], not text" in found[0]["when"].problem


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_nulls_that_only_arrow_padded_in_are_left_out(tmp_path: Path, name: str) -> None:
    def record(**arguments: Any) -> dict[str, Any]:
        call = {"name": "f", "arguments": arguments}
        return {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "tool"}]}

    records = [record(city="Oslo"), record(ticker="X", deep={"a": [1]}), record(deep={"b": "c"})]
    assert values(table_file(tmp_path / name, pa.Table.from_pylist(records))) == records


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_values_without_a_form_in_json(tmp_path: Path, name: str) -> None:
    table = pa.table(
        {
            "nulls": pa.array([[None, None]] * 3),  # which pyarrow casts wrongly
            "price": pa.array([[{"x": Decimal("1.5")}]] * 3),
            "blob": pa.array([{"x": b"1"}] * 3),
            "pairs": pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())),
            "twice": pa.array([[("k", "v"), ("k", "w")]] * 3, pa.map_(pa.string(), pa.string())),
        }
    )
    row = values(table_file(tmp_path / name, table))[2]
    assert (row["nulls"], row["price"]) == ([None, None], [{"x": 1.5}])
    assert (row["blob"], row["pairs"]) == (Unreadable("holds bytes, not text"), {"k": "v"})
    assert isinstance(row["twice"], Unreadable)


def test_a_damaged_arrow_file_does_not_end_the_process(tmp_path: Path) -> None:
    """Arrow trusts the lengths and offsets that stand in it."""
    path = write(tmp_path / "d.arrow", RECORDS[:4])
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + b"\xff\x7f" + whole[place + 2 :])
        assert all(isinstance(value, dict | Bad) for value in values(path))


def test_a_doubled_column_is_told_where_it_is_read(tmp_path: Path) -> None:
    columns = [pa.array(["q"]), pa.array(["a"]), pa.array(["b"])]
    table = pa.table(columns, names=["prompt", "completion", "completion"])
    rows = tmp_path / "d.csv"
    rows.write_text("prompt,completion,completion\nq,a,b\n")
    for path in (table_file(tmp_path / "d.parquet", table), rows):
        (record,) = values(path)
        assert record == {"prompt": "q", "completion": Unreadable(tables.TWICE)}


def test_a_preview_reads_little_of_a_large_row_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"text": [rng.bytes(500).hex() for _ in range(20_000)]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=20_000, compression="none",
                   use_dictionary=False)  # fmt: skip

    class Counting(io.FileIO):
        total = 0

        def read(self, size: int = -1) -> bytes:
            found = super().read(size)
            Counting.total += len(found)
            return found

    file = File("d.parquet", 0)
    next(iter(tables.read_parquet(Counting(tmp_path / "d.parquet"), file)))  # type: ignore[arg-type]
    assert 0 < Counting.total < 6 << 20  # of 20 MB


def test_a_folder_a_glob_and_a_list_are_all_their_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz"):
        write(tmp_path / name, RECORDS[:1])
    (tmp_path / "notes.txt").write_text("not data")
    both = [str(tmp_path / "a.jsonl.gz"), str(tmp_path / "b.jsonl")]
    assert files(str(tmp_path)) == both
    assert files(str(tmp_path / "*.jsonl*")) == both
    remote = [f"file://{path}" for path in both]
    assert files(f"file://{tmp_path}") == remote
    assert files(f"file://{tmp_path}/*.jsonl*") == remote
    with pytest.raises(UserError, match=r"notes.txt is none of .json, .jsonl, "):
        files(tmp_path / "*")
    for missing in (f"file://{tmp_path}/none.jsonl", "nowhere://x/y.jsonl"):
        with pytest.raises(UserError, match=r"data\.path"):
            files(missing)


def test_what_is_a_hub_id() -> None:
    assert looks_like_hub_id("tatsu-lab/alpaca")
    for path in ("./data/x", "data/x.json", "data/x.csv.gz", "/data/x", "../data", "x", "a/b/c"):
        assert not looks_like_hub_id(path)


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", RECORDS[:2])
    same = write(tmp_path / "b.jsonl", RECORDS[:2])
    other = write(tmp_path / "c.jsonl", RECORDS[:3])
    one, two, three = (identity(Source(path=str(p)), 0) for p in (first, same, other))
    assert one == two != three


def test_parts_of_a_mixture_take_what_they_lack_from_data() -> None:
    part = Source(path="b", weight=2.0, split="test")
    data = Data(path=("a", part), format="alpaca", revision="r")
    first, second = sources(data, data.path)
    assert (first.path, first.weight, first.format, first.split) == ("a", 1.0, "alpaca", "train")
    assert (second.format, second.split, second.revision) == ("alpaca", "test", "r")


GOOD = json.dumps({"instruction": "q", "output": "a"}).encode()
LONG = b'{"instruction": "' + b"x" * (100 << 20) + b'"}'


def lines(bad: bytes) -> bytes:
    return GOOD + b"\n" + bad + b"\n" + GOOD + b"\n"


def elements(bad: bytes) -> bytes:
    return b"[\n" + GOOD + b",\n" + bad + b",\n" + GOOD + b"\n]"


def rows(bad: bytes) -> bytes:
    return b"instruction,output\nq,a\n" + bad + b"\nq,a\n"


@pytest.mark.parametrize(
    ("name", "content", "problem", "at", "left"),
    [
        ("d.jsonl", lines(b"x" * (100 << 20)), "longer than 16 MiB", "line 2", 2),
        ("d.jsonl.gz", gzip.compress(lines(LONG), 1, mtime=0), "longer than 16 MiB", "line 2", 2),
        ("d.json", elements(LONG), "longer than 16 MiB; the rest", "record 2", 1),
        ("d.json", elements(b'{"a" 1}'), "not valid JSON: Expecting ':' delimiter at line 3",
         "record 2", 1),
        ("d.json", elements(b'{"a": "\xff"}'), "not valid UTF-8", "record 2", 2),
        ("d.json", elements(b"[" * 100_000), "nested too deeply", "record 2", 1),
        ("d.json", elements(GOOD)[:-1], "the list is not closed", "record 4", 3),
        ("d.json", elements(GOOD) + b"\n garbage", "text between or after lists at line 6",
         "record 4", 3),
        ("d.json", elements(GOOD) + b",\n[1]", "text between or after lists at line 5",
         "record 4", 3),
        ("d.json", b'{\n"a": [1}', "not valid JSON: Expecting ',' delimiter at line 2",
         "record 1", 0),
        ("d.jsonl.zst", bytes(pa.compress(lines(GOOD) * 9, "zstd", asbytes=True))[:-9],
         "the rest of this file is not read", None, None),
        ("d.jsonl.bz2", bz2.compress(lines(GOOD) * 9)[:-9], "the compressed data ends too early",
         None, None),
        ("d.jsonl.xz", b"not xz", "Input format not supported", "line 1", 0),
        ("d.csv", rows(b"q,\xff"), "not valid UTF-8", "line 3", 2),
        ("d.csv", rows(b"q"), "1 values where the header has 2 names", "line 3", 2),
        ("d.csv", rows(b'"q"x,a'), "not valid CSV", "line 3", 1),
        ("d.csv", rows(b"q," + b"x" * (100 << 20)), "longer than 16 MiB", "line 3", 2),
        ("d.jsonl.gz", gzip.compress(lines(GOOD) * 99_999, mtime=0)[:-99],
         "the compressed data ends too early", None, None),
        ("d.json.gz", gzip.compress(elements(GOOD), mtime=0)[:-9],
         "the compressed data ends too early", None, None),
        ("d.csv.gz", b"not gzip", "Not a gzipped file", "line 1", 0),
    ],
)  # fmt: skip
def test_damage_in_the_middle_is_one_bad_record_with_its_place(
    tmp_path: Path, name: str, content: bytes, problem: str, at: str | None, left: int | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = values(path)
    (bad,) = [index for index, value in enumerate(found) if isinstance(value, Bad)]
    assert problem in found[bad].message
    if at is not None:
        assert places(path)[bad] == f"{path} {at}"
        assert len(found) - 1 == left
    else:
        assert bad == len(found) - 1


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 not really")
    (bad,) = values(path)
    assert "the rest of this file is not read" in bad.message


@pytest.mark.parametrize("make", [lines, elements])
def test_reading_needs_no_memory_for_what_is_too_long(
    tmp_path: Path, make: Callable[[bytes], bytes]
) -> None:
    import tracemalloc

    path = tmp_path / ("d.jsonl" if make is lines else "d.json")
    path.write_bytes(make(LONG))
    tracemalloc.start()
    values(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20
