"""Every record of a source in order, streamed in chunks, each with its place for errors."""

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from raysft.config.data import DEMO, Source
from raysft.data.containers import DAMAGE, File, decompressed
from raysft.data.json_files import read_json, read_lines
from raysft.data.raw import CHUNK_RECORDS, Line, Numbered, lost
from raysft.data.sources import find_files, forget_pickled_columns, load_hub
from raysft.data.tables import read_arrow, read_csv, read_parquet, records

CHUNK_BYTES = 4 << 20
DEMO_RECORDS = 8_200


class Chunk(NamedTuple):
    source: int  # index in the mixture
    place: str  # "file.jsonl line", to which a record's number is added
    numbers: list[int]
    values: list[Any]  # Line, Bad, or the record


def read_chunks(source: Source, index: int, *, seed: int) -> Iterator[Chunk]:
    """Every record of a source, in order. Raises UserError when there is nothing to read."""
    if source.path == DEMO:
        from raysft.data import demo

        generated = demo.generate(DEMO_RECORDS, seed)
        yield from grouped(index, "demo record", enumerate(generated, start=1))
        return
    forget_pickled_columns()
    files = find_files(source).files
    if not files:
        name = f"{source.path} {source.split} row"
        yield from grouped(index, name, enumerate(hub_records(source), start=1))
    for file in files:
        unit, reader = READERS[file.kind]
        yield from grouped(index, f"{file.name} {unit}", guarded(file, reader))


def hub_records(source: Source) -> Iterator[Any]:
    tables = load_hub(source).with_format("arrow").iter(batch_size=CHUNK_RECORDS)
    return records(batch for table in tables for batch in table.to_batches())


def grouped(index: int, place: str, found: Iterable[tuple[int, Any]]) -> Iterator[Chunk]:
    numbers: list[int] = []
    values: list[Any] = []
    size = 0
    for number, value in found:
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
            for number, value in reader(decompressed(raw, file), file):
                yield number, value
    except (*DAMAGE, MemoryError, pa.ArrowException) as error:
        what = {
            EOFError: "the compressed data ends too early",
            MemoryError: "a length in it is beyond the memory of this machine",
        }.get(type(error), str(error))
        yield number + 1, lost(file, what)


READERS: dict[str, tuple[str, Callable[[IO[bytes], File], Numbered]]] = {
    ".json": ("record", read_json),
    ".jsonl": ("line", read_lines),
    ".ndjson": ("line", read_lines),
    ".csv": ("line", read_csv),
    ".tsv": ("line", read_csv),
    ".parquet": ("row", read_parquet),
    ".arrow": ("row", read_arrow),
}
