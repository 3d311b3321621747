"""`data.path` to raw records, each with the place it came from, so that an error can name it."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from raysft.config.schema import DEMO
from raysft.errors import UserError

SUFFIXES = (".json", ".jsonl", ".parquet")
DEMO_RECORDS = 8_200


class Record(NamedTuple):
    where: str  # "file.jsonl line 12"
    value: Any  # what the file held: a dict, unless the data is malformed
    error: str | None = None  # set where this record could not be parsed


def read_records(path: str | tuple[str, ...], *, split: str, seed: int) -> Iterator[Record]:
    """Raises UserError: nothing there, an unknown kind of file, or one that does not parse."""
    if path == DEMO:
        from raysft.data import demo

        for index, record in enumerate(demo.generate(DEMO_RECORDS, seed)):
            yield Record(f"demo record {index + 1}", record)
        return
    for source in [path] if isinstance(path, str) else path:
        files = find_files(source)
        if not files:
            yield from read_hub(source, split)
        for file in files:
            yield from READERS[file.suffix](file)


def find_files(source: str) -> list[Path]:
    """The files of a path, folder or glob; none when `source` must be a hub id.

    Raises UserError when it is a path that does not exist or a file of an unknown kind.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    elif glob.has_magic(source):
        files = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())
    elif path.is_file():
        files = [path]
    elif looks_like_hub_id(source):
        return []
    else:
        raise UserError(f"data.path: there is no file {source}")
    if not files:
        raise UserError(f"data.path: {source} holds no {', '.join(SUFFIXES)} file")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(f"data.path: {file} is none of {', '.join(SUFFIXES)}")
    return files


def looks_like_hub_id(source: str) -> bool:
    """`owner/name`, and nothing that a person would write for a file."""
    return source.count("/") == 1 and source[0] not in "./~" and Path(source).suffix not in SUFFIXES


def read_json(file: Path) -> Iterator[Record]:
    try:
        values = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} byte {error.start}: not valid UTF-8: {error.reason}") from None
    if not isinstance(values, list):
        raise UserError(f"{file}: a list of records is expected, but it holds a JSON object")
    for index, value in enumerate(values):
        yield Record(f"{file} record {index + 1}", value)


def read_jsonl(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file} line {number}"
            try:
                yield Record(where, json.loads(line))
            except json.JSONDecodeError as error:
                yield Record(where, None, f"not valid JSON: {error.msg} at column {error.colno}")
            except UnicodeDecodeError as error:
                yield Record(where, None, f"not valid UTF-8: {error.reason}")


def read_parquet(file: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        row = 0
        for batch in pq.ParquetFile(file).iter_batches():
            for value in batch.to_pylist():
                row += 1
                yield Record(f"{file} row {row}", value)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file: {error}") from None


READERS = {".json": read_json, ".jsonl": read_jsonl, ".parquet": read_parquet}


def read_hub(name: str, split: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises a different class for each way to fail
        raise UserError(
            f"data.path: {name!r} is no local file, and loading it from the Hugging Face hub "
            f"failed: {type(error).__name__}: {error}\n"
            "Give data.path a local .json, .jsonl or .parquet file, or check name and connection."
        ) from None
    for index, value in enumerate(rows):
        yield Record(f"{name} {split} row {index + 1}", value)
