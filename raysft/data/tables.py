"""Tables to raw records: CSV, Parquet and Arrow."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import IO, Any

from raysft.data.containers import BLOCK, File
from raysft.data.raw import (
    CHUNK_RECORDS,
    MAX_RECORD_BYTES,
    TOO_LONG,
    Bad,
    Numbered,
    is_utf8,
    lost,
    not_utf8_text,
)
from raysft.data.shapes import Unreadable

# What pyarrow raises for a value that Python has no form of: a date, a zone, a key there twice.
UNCONVERTIBLE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
TWICE = "is the name of several columns: leave one of them"


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
        elif not all(map(is_utf8, row)):
            wrong = next(cell for cell in row if not is_utf8(cell))
            yield rows.line_num, Bad(not_utf8_text(wrong))
        elif names is None:
            names = row
        elif len(row) != len(names):
            yield rows.line_num, Bad(f"{len(row)} values where the header has {len(names)} names")
        else:
            yield rows.line_num, dict(zip(names, row, strict=True)) | doubled(names)


def doubled(names: Sequence[str]) -> dict[str, Any]:
    """What stands in the place of columns whose name does not tell which is meant."""
    if len(set(names)) == len(names):
        return {}
    return {name: Unreadable(TWICE) for name, count in Counter(names).items() if count > 1}


def read_parquet(stream: IO[bytes], _: File) -> Numbered:
    import pyarrow.parquet as pq

    # Page by page: a row group may be the whole file.
    file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK)
    return enumerate(records(file.iter_batches(batch_size=CHUNK_RECORDS)), start=1)


def read_arrow(stream: IO[bytes], _: File) -> Numbered:
    """What `datasets` saves to disk: a stream of Arrow's; or a file of Arrow's, as Feather is."""
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        table = pa.ipc.open_file(stream)
        batches: Iterable[Any] = map(table.get_batch, range(table.num_record_batches))
    else:
        stream.seek(0)
        batches = pa.ipc.open_stream(stream)
    return enumerate(records(map(checked, batches)), start=1)


def checked(batch: Any) -> Any:
    """A batch whose values are within its buffers, which Arrow takes for granted: a damaged one
    would end the process. Raises ArrowInvalid.
    """
    import pyarrow as pa

    batch.validate()
    for column in batch.columns:
        kind = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
        (column.view(kind) if kind else column).validate(full=True)  # UTF-8 is looked at later
    return batch


def records(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of Arrow batches, without the values that only Arrow padded in.

    A value that cannot be converted is `Unreadable`: an error where it is read, and only there.
    """
    for batch in batches:
        names = batch.schema.names
        twice = doubled(names)
        columns = {name: batch.column(index) for index, name in enumerate(names)}
        for begin in range(0, batch.num_rows, CHUNK_RECORDS):
            some = {
                name: values_of(column.slice(begin, CHUNK_RECORDS))
                for name, column in columns.items()
                if name not in twice
            }
            for row in range(min(CHUNK_RECORDS, batch.num_rows - begin)):
                yield {name: values[row] for name, values in some.items()} | twice


def values_of(column: Any) -> Sequence[Any]:
    """Python values of an Arrow array."""
    import pyarrow as pa

    if pa.types.is_temporal(column.type):  # no text, and not every one is a date of Python's
        return [Unreadable(f"is {column.type}, not text")] * len(column)
    kind = without_times(column.type)
    try:
        if kind != column.type:  # a cast to the same type is wrong for lists of nulls
            column = column.cast(kind)
            column.validate()
        values = column.to_pylist(maps_as_pydicts="strict")
    except UNCONVERTIBLE:
        values = [value_of(scalar) for scalar in column]
    return list(map(plain, values)) if pa.types.is_nested(column.type) else values


def value_of(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        return Unreadable("is not valid UTF-8")
    except UNCONVERTIBLE as error:
        return Unreadable(f"cannot be converted: {error}")


def without_times(kind: Any) -> Any:
    """The type with numbers for the times in it: no text either, but they always convert."""
    import pyarrow as pa

    if pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(without_times(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(without_times(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(without_times(kind.value_type)))
    return kind


def plain(value: Any) -> Any:
    """A nested value as JSON would have it, without the fields that are null: a struct of Arrow's
    has those of all rows.
    """
    try:
        return unpadded(value)
    except TypeError as error:
        return Unreadable(str(error))


def unpadded(value: Any) -> Any:
    """Raises TypeError where something in it has no form in JSON."""
    if isinstance(value, dict):
        return {str(name): unpadded(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [unpadded(inner) for inner in value]
    if isinstance(value, Decimal):
        return float(value)
    if not isinstance(value, str | int | float | Unreadable | None):
        raise TypeError(f"holds {type(value).__name__}, not text")
    return value
