"""What a person may have meant by a name that is none: the nearest key, option or file."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from raysft.config.other_names import OTHER_NAMES, SECTIONS
from raysft.config.schema import Config

SURE = 0.75  # how alike two names of different sections must be, as difflib measures it


def did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_keys(sections: list[str]) -> list[str]:
    model: Any = Config
    for section in sections:
        if section not in model.model_fields:  # a key of tune.space
            continue
        model = next(models_in(model.model_fields[section].annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a key may hold: itself, or in a union or list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for member in get_args(annotation):
        yield from models_in(member)


@cache
def all_keys() -> dict[str, str]:
    """Dotted key to its last word, those of the plain sections first."""
    found = {}
    for section, field in Config.model_fields.items():
        (model,) = models_in(field.annotation)
        for key, inner in model.model_fields.items():
            found[f"{section}.{key}"] = inner.alias or key
    nested = (f"model.shape.{key}" for key in known_keys(["model", "shape"]))
    return found | {key: key.rpartition(".")[2] for key in nested}


def key_meant(word: str) -> str | None:
    """The dotted key that a name from anywhere stands for, if one does."""
    word = word.lower().replace("-", "_")
    same = [key for key, last in all_keys().items() if last == word]
    if len(same) == 1:
        return same[0]
    if word in OTHER_NAMES:
        return OTHER_NAMES[word]
    last_words = {last: key for key, last in reversed(all_keys().items())}
    close = difflib.get_close_matches(word, [*OTHER_NAMES, *last_words], n=1, cutoff=SURE)
    return (OTHER_NAMES | last_words)[close[0]] if close else None


def suggested(location: list[str], value: Any) -> str:
    """The end of a message about a key that does not exist."""
    *sections, word = location
    known = known_keys(sections)
    if not sections and isinstance(value, Mapping):
        return section_meant(word, value)
    beside = difflib.get_close_matches(word, known, n=1, cutoff=SURE)
    meant = key_meant(word)
    if beside or meant is None:
        return did_you_mean(word, known)
    section, _, key = meant.rpartition(".")
    return f"; did you mean {key if section == '.'.join(sections) else meant!r}?"


def section_meant(word: str, table: Mapping[str, Any]) -> str:
    """Of a table with a name of its own: that of a section, or where its keys belong."""
    close = difflib.get_close_matches(word, list(Config.model_fields), n=1, cutoff=SURE)
    section = close[0] if close else SECTIONS.get(word)
    if section and (close or not set(table).isdisjoint(known_keys([section]))):
        return f"; did you mean {section!r}?"
    meant = {key: key_meant(key) for key in table}
    moved = [f"{key} is {one}" for key, one in meant.items() if one][:5]
    return (
        f": its keys belong elsewhere ({', '.join(moved)})"
        if moved
        else (f"; did you mean {section!r}?" if section else "")
    )
