"""The first records of every source, read as training will read them: no tokenizer is needed."""

from collections import Counter
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from raysft.config.data import DEMO, Fields, Source
from raysft.config.schema import Config
from raysft.data.detect import Look, check_first, format_of, look, names_of
from raysft.data.formats import FORMATS, PAIRS, renamed, to_conversations
from raysft.data.hub import NoAnswer, require_on_hub
from raysft.data.pairs import to_pair
from raysft.data.shapes import READ, has_text
from raysft.data.sources import find_files, sources
from raysft.data.turns import NothingToLearn, RecordError
from raysft.errors import UserError

RECORDS = 200  # of a source that are looked at


def check_data(config: Config, *, elsewhere: bool = False, pairs: bool | None = False) -> list[str]:
    """`data.path` and `data.eval_path`, as far as they lie on this machine; warnings.

    elsewhere: the run is to start on a cluster, which has other files under absolute paths and its
    own way to the hub. pairs: whether the records are to be preference pairs; None takes either.
    Raises UserError: no such file, no known format or one of the other kind, fields that are not
    there, a record that is wrong. The warnings are of a hub that does not answer.
    """
    data, warnings = config.data, []
    for key, paths in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        if paths is None:
            continue
        parts = sources(data, paths)
        try:
            here = []
            for part in parts:
                try:
                    if is_here(part, key, elsewhere=elsewhere):
                        here.append(part)
                except NoAnswer as error:
                    warnings.append(str(error))
            check_parts(config, here, are_all=len(here) == len(parts), pairs=pairs)
        except UserError as error:  # whose words are of `path`, for either
            raise UserError(str(error).replace("data.path:", f"{key}:", 1)) from None
    return warnings


def is_here(part: Source, key: str, *, elsewhere: bool) -> bool:
    """Whether its records are files that can be opened at once. Raises UserError and NoAnswer."""
    if part.path == DEMO or "://" in part.path or (elsewhere and part.path[:1] == "/"):
        return False
    if find_files(part).files:
        return True
    if not elsewhere:
        require_on_hub("dataset", part.path, key, part.revision)
    return False


def check_parts(
    config: Config, parts: list[Source], *, are_all: bool, pairs: bool | None = False
) -> None:
    """are_all: no other part can have the fields that these lack. pairs: as in `check_data`.
    Raises UserError."""
    data = config.data
    looks = [look(part, index, config.run.seed) for index, part in enumerate(parts)]
    fields = [(part.fields or data.fields).model_dump(exclude_none=True) for part in parts]
    if are_all:
        check_first(fields, looks)
    dropped: Counter[str] = Counter()
    whole, num_records = are_all, 0
    for part, its, first in zip(parts, fields, looks, strict=True):
        records = first.records[: min(RECORDS, data.max_records or RECORDS)]
        name = format_of(part, its, first, pairs=pairs)
        dropped += check_records(config, name, its, first, records)
        whole = whole and first.whole and len(records) == len(first.records)
        num_records += len(records)
    if whole and num_records == dropped.total() > 0:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
        raise UserError(
            f"data.path: no record of {num_records:,} can be trained on: {reasons}. The first is "
            f"{looks[0].records[0][0]}"
        )


def check_records(
    config: Config, name: str, fields: dict[str, str], first: Look, records: list[tuple[str, Any]]
) -> Counter[str]:
    """Why some would be left out. Raises UserError for one that would stop the run."""
    dropped: Counter[str] = Counter()
    for where, record in records:
        try:
            if isinstance(record, RecordError):
                raise record
            if name == "preference":
                to_pair(renamed(record, fields))
            elif name not in PAIRS:  # of a labelled answer nobody can tell before all are read
                to_conversations(renamed(record, fields), FORMATS[name])
        except NothingToLearn as error:
            dropped[error.reason] += 1
        except RecordError as error:
            if config.data.on_bad_record == "error":
                advice = advice_for(str(error), name, first)
                raise UserError(f"{where}: {error}{advice}") from None
            dropped[error.reason] += 1
    return dropped


def advice_for(problem: str, name: str, first: Look) -> str:
    """What to do about a record that is wrong: name its field, where one is missing."""
    skip = 'Mend it, or leave such records out with data.on_bad_record = "skip".'
    for names in READ[name] if problem.startswith("no field ") else ():
        if f"no field {' or '.join(map(repr, names))};" in problem and names[0] in set(
            Fields.model_fields
        ):
            known = {word for group in READ[name] for word in group}
            free = [field for field in with_text(first) if field not in known]
            close = get_close_matches(names[0], free, n=1, cutoff=0.5) or free
            value = f'"{close[0]}"' if close else "NAME"
            return f"\nIf it goes by another name, say which: data.fields.{names[0]} = {value}"
    return f"\n{skip}"


def with_text(first: Look) -> list[str]:
    """The fields of the first records that hold text somewhere."""
    found = []
    for name in names_of(first):
        with suppress(AttributeError, TypeError):
            if any(has_text(dict(record).get(name)) for _, record in first.records[:RECORDS]
                   if not isinstance(record, RecordError)):  # fmt: skip
                found.append(name)
    return found
