"""Files to raw records, streamed in chunks, each record with its place so that errors can name it.

A bad record is a value like any other (`Bad`), so that the records after it can still be read.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, cast

from raysft.config.data import DEMO, Source
from raysft.data.sources import File, find_files, forget_pickled_columns, load_hub

MAX_RECORD_BYTES = 16 << 20  # longer ones are taken for a mistake, and never held in memory
CHUNK_RECORDS = 1000
CHUNK_BYTES = 4 << 20
BLOCK = 1 << 20
DEMO_RECORDS = 8_200
BETWEEN = re.compile(r"[\s,]*")  # what separates the elements of a list
TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


class Bad(NamedTuple):
    """Stands where a record could not be read."""

    message: str
    reason: str = "malformed"  # what it is counted as


class Line(NamedTuple):
    """A record still to be parsed, which is left to whoever tokenises it."""

    json: bytes


class Chunk(NamedTuple):
    source: int  # index in the mixture
    place: str  # "file.jsonl line", to which a record's number is added
    numbers: list[int]
    values: list[Any]  # Line, Bad, or the record


Numbered = Iterator[tuple[int, Any]]


def read_chunks(source: Source, index: int, *, seed: int) -> Iterator[Chunk]:
    """Every record of a source, in order. Raises UserError when there is nothing to read."""
    if source.path == DEMO:
        from raysft.data import demo

        records = demo.generate(DEMO_RECORDS, seed)
        yield from grouped(index, "demo record", enumerate(records, start=1))
        return
    files = find_files(source.path)
    if not files:
        name = f"{source.path} {source.split} row"
        yield from grouped(index, name, enumerate(load_hub(source), start=1))
    for file in files:
        unit, reader = READERS[file.kind]
        yield from grouped(index, f"{file.name} {unit}", guarded(file, reader))


def grouped(index: int, place: str, records: Iterable[tuple[int, Any]]) -> Iterator[Chunk]:
    numbers: list[int] = []
    values: list[Any] = []
    size = 0
    for number, value in records:
        numbers.append(number)
        values.append(value)
        size += len(value.json) if isinstance(value, Line) else 0
        if len(values) == CHUNK_RECORDS or size > CHUNK_BYTES:
            yield Chunk(index, place, numbers, values)
            numbers, values, size = [], [], 0
    if values:
        yield Chunk(index, place, numbers, values)


def guarded(file: File, reader: Callable[[IO[bytes], File], Numbered]) -> Numbered:
    """The reader's records; a file that breaks off or is damaged ends with a bad one."""
    import pyarrow as pa

    number = 0
    try:
        with file.open() as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if file.is_gzip else raw
            for number, value in reader(stream, file):
                yield number, value
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        what = "the compressed data ends too early" if isinstance(error, EOFError) else str(error)
        yield number + 1, lost(file, what)


def lost(file: File, what: str) -> Bad:
    return Bad(f"{what}; the rest of this file is not read", f"the rest of {file.name} is lost")


def read_lines(stream: IO[bytes], _: File) -> Numbered:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield number, Bad(TOO_LONG)
        elif line.strip():
            yield number, Line(line)


def read_json(stream: IO[bytes], file: File) -> Numbered:
    """A list of records, or one record a line, as many files of this name are."""
    buffered = io.BufferedReader(cast(io.RawIOBase, stream))
    start = buffered.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return read_array(buffered, file)
    if start.splitlines()[:1] == [b"{"]:
        return iter([(1, lost(file, "not a list of records, nor one record a line"))])
    return read_lines(buffered, file)


def read_array(stream: IO[bytes], file: File) -> Numbered:
    """The elements of one large JSON list, without holding more than a block of them."""
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    decoder = json.JSONDecoder()
    buffer, place, line, number = text.read(BLOCK), 0, 1, 1
    place = buffer.index("[") + 1
    while True:
        place = BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
        if buffer.startswith("]", place):
            return
        try:
            problem = "the list is not closed"
            value, end = decoder.raw_decode(buffer, place)
        except (ValueError, RecursionError) as error:
            if len(buffer) - place > MAX_RECORD_BYTES:
                yield number, lost(file, TOO_LONG)
                return
            if is_mistake(error, buffer):
                yield number, lost(file, json_message(error, line))
                return
            if place < len(buffer):
                problem = json_message(error, line)
            end = len(buffer)
        if end == len(buffer):  # perhaps the beginning of something longer
            more = text.read(BLOCK)
            if not more:
                yield number, lost(file, problem)
                return
            line += buffer.count("\n", 0, place)
            buffer, place = buffer[place:] + more, 0
            continue
        yield number, value if is_utf8(buffer[place:end]) else Bad("not valid UTF-8")
        place, number = end, number + 1


def is_mistake(error: Exception, buffer: str) -> bool:
    """Whether it is wrong, and not only cut off at the end of what has been read."""
    if not isinstance(error, json.JSONDecodeError):
        return True
    return error.pos < len(buffer) - 16 and not error.msg.startswith("Unterminated string")


def json_message(error: Exception, first_line: int | None = None) -> str:
    """`first_line`: the number of the line on which the parsed text begins in its file."""
    if isinstance(error, json.JSONDecodeError):
        column = f"column {error.colno}"
        line = column if first_line is None else f"line {first_line + error.lineno - 1}"
        return f"not valid JSON: {error.msg} at {line}"
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    return f"not valid JSON: {error}"


def is_utf8(text: str) -> bool:
    """False where bytes that are no UTF-8 were read as lone surrogates."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def read_csv(stream: IO[bytes], file: File) -> Numbered:
    """One record a row, under the names of the first."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    overlong: list[int] = []

    def lines() -> Iterator[str]:
        while line := text.readline(MAX_RECORD_BYTES):
            if len(line) == MAX_RECORD_BYTES:
                overlong.append(rows.line_num + 1)
                while line and not line.endswith("\n"):
                    line = text.readline(MAX_RECORD_BYTES)
                line = "\n"
            yield line

    delimiter = "\t" if file.kind == ".tsv" else ","
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, lost(file, f"not valid CSV: {error}")
            return
        if overlong:
            yield overlong.pop(), Bad(TOO_LONG)
        elif not row:
            continue
        elif names is None:
            names = row
        elif len(row) != len(names):
            yield rows.line_num, Bad(f"{len(row)} values where the header has {len(names)} names")
        elif not all(map(is_utf8, row)):
            yield rows.line_num, Bad("not valid UTF-8")
        else:
            yield rows.line_num, dict(zip(names, row, strict=True))


def read_parquet(stream: IO[bytes], _: File) -> Numbered:
    import pyarrow.parquet as pq

    forget_pickled_columns()
    number = 0
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=CHUNK_RECORDS):
        for value in batch.to_pylist():
            number += 1
            yield number, value


READERS: dict[str, tuple[str, Callable[[IO[bytes], File], Numbered]]] = {
    ".json": ("record", read_json),
    ".jsonl": ("line", read_lines),
    ".csv": ("line", read_csv),
    ".tsv": ("line", read_csv),
    ".parquet": ("row", read_parquet),
}
