"""What the first records of a source tell: its format, and whether a mapping of fields fits."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from raysft.config.data import Source
from raysft.config.near import did_you_mean
from raysft.data.formats import PAIRS, detect_format, found_in, renamed
from raysft.data.json_files import raw_record
from raysft.data.read import read_chunks
from raysft.data.shapes import names_in
from raysft.data.turns import RecordError
from raysft.errors import UserError

DETECT_RECORDS = 100  # looked at to detect a format
ALIKE = 0.8  # two names that differ by a typing error, as difflib measures it
PREFERENCE = (
    "these are preference pairs (`chosen` and `rejected`), which `raysft reward` and `raysft dpo` "
    "learn from; supervised fine-tuning takes one response a record. To train on the preferred "
    "ones, write records with `chosen` as the response, or, where it is text, set "
    'data.fields.completion = "chosen"'
)
SINGLES = (
    "this record has one answer, and a pair has two: `chosen` and `rejected`. Name their fields "
    "with data.fields.chosen and data.fields.rejected if they have other names; `raysft pairs` "
    "makes pairs of a model's own answers"
)

Fields = Mapping[str, str]


class Look(NamedTuple):
    """The first records of a source, each with its place, or why it could not be read."""

    records: list[tuple[str, Any]]  # (place, record or RecordError)
    whole: bool  # these are all that it has


def look(source: Source, index: int, seed: int) -> Look:
    """Raises UserError when the source has no records."""
    chunks = list(islice(read_chunks(source, index, seed=seed), 2))
    if not chunks:
        raise UserError(f"data.path: {source.path} holds no records")
    return Look(list(opened(chunks[0])), whole=len(chunks) == 1)


def opened(chunk: Any) -> Iterator[tuple[str, Any]]:
    for number, value in zip(chunk.numbers, chunk.values, strict=True):
        where = f"{chunk.place} {number}"
        try:
            yield where, raw_record(value)
        except RecordError as error:
            yield where, error


def format_of(source: Source, fields: Fields, first: Look, *, pairs: bool | None = False) -> str:
    """The format named, or detected from the first record that can be read.

    pairs: whether it is to be one of preference pairs; None takes either. Raises UserError when
    none of the first records is of a known format, or of that kind.
    """
    named = source.format not in (None, "auto")
    first_problem = ""
    for where, record in first.records[:DETECT_RECORDS]:
        try:
            if isinstance(record, RecordError):
                raise record
            known = renamed(record, fields)
            name = str(source.format) if named else detect_format(known)
        except RecordError as error:
            if named:
                return str(source.format)
            first_problem = first_problem or f"{where}: {error}"
            continue
        if pairs and name == "prompt_completion" and "label" in known:
            name = "labelled"
        if pairs is not None and pairs != (name in PAIRS):
            raise UserError(f"{where}: {SINGLES if pairs else PREFERENCE}")
        return name
    raise UserError(first_problem)


def check_first(fields: Sequence[Fields], looks: Sequence[Look]) -> None:
    """Raises UserError for a mapping that fits none of the first records, where these are all, or
    where one of their fields has almost its name.
    """
    for index, first in enumerate(looks):
        for known, name in absent(fields, index, mapped_in(fields, looks)):
            same = [one for one, its in zip(looks, fields, strict=True) if its == fields[index]]
            if get_close_matches(name, names_of(first), 1, ALIKE) or all(one.whole for one in same):
                refuse(known, name, first)


def check_all(fields: Sequence[Fields], mapped: Counter[str], parts: Sequence[Source]) -> None:
    """Raises UserError for a mapping that no record fits; `mapped` counts those of all records."""
    for index, part in enumerate(parts):
        for known, name in absent(fields, index, mapped):
            refuse(known, name, look(part, index, seed=0))


def mapped_in(fields: Sequence[Fields], looks: Sequence[Look]) -> Counter[str]:
    """As `pipeline.Part.mapped`."""
    return Counter(
        f"{index}.{known}"
        for index, (its, first) in enumerate(zip(fields, looks, strict=True))
        for _, record in first.records
        for known in found_in(record, its)
    )


def absent(fields: Sequence[Fields], index: int, mapped: Counter[str]) -> list[tuple[str, str]]:
    """What is mapped for a part of a mixture, and found neither there nor in the parts that have
    the same mapping, because it was written for all of them."""
    same = [other for other, its in enumerate(fields) if its == fields[index]]
    return [
        (known, name)
        for known, name in fields[index].items()
        if not any(mapped[f"{other}.{known}"] for other in same)
    ]


def names_of(first: Look) -> dict[str, None]:
    """The fields of the first records, in order."""
    records = (record for _, record in first.records if isinstance(record, Mapping))
    return {name: None for record in records for name in record}


def refuse(known: str, name: str, first: Look) -> None:
    names = names_of(first)
    raise UserError(
        f"data.fields.{known} = {name!r}: no record has that field; {first.records[0][0]} has "
        f"{names_in(names)}{did_you_mean(name, names)}"
    )
