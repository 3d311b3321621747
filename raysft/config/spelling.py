"""How values, lines and files that are not TOML would be written in it."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tomllib import TOMLDecodeError

from raysft.config.near import all_keys, key_meant
from raysft.config.other_names import OTHER_VALUES

PYTHON = {"True": "true", "False": "false", "None": "none"}
SHOWN = 8  # keys of a file in another language
LEAF = re.compile(r'^\s*"?([\w.-]+)"?\s*:\s*([^\s{\[].*?),?\s*$')


def value_form(value: str) -> str | None:
    """The form that a value of `--set` should have had; None where it is a plain text."""
    if value in PYTHON:
        return PYTHON[value] + (", which puts a key back to its default" if value == "None" else "")
    if value[:1] + value[-1:] in ("[]", "()") and "," in value:
        parts = [part.strip() for part in value[1:-1].split(",") if part.strip()]
        return f"'[{', '.join(map(quoted, parts))}]'"
    return None


def quoted(word: str) -> str:
    """As a value of TOML: numbers, `true` and `false` as they are, texts in quotes."""
    word = word.strip("'\"")
    if word in PYTHON:
        return PYTHON[word]
    if word in ("true", "false") or re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", word):
        return word
    return json.dumps(word, ensure_ascii=False)


def value_hint(kind: str, value: object) -> str:
    """The end of a message about a value of the wrong type; `kind` is pydantic's name of it."""
    if not isinstance(value, str):
        return ""
    if value in PYTHON and kind.startswith("bool"):
        return f"; write {PYTHON[value]}"
    if kind.startswith(("tuple", "list")):
        listed = ", ".join(quoted(part.strip()) for part in value.split(",") if part.strip())
        return f"; a list is written [{listed}]"
    return ""


def line_hint(text: str, error: TOMLDecodeError) -> str:
    """The line that is not TOML, and what it should be where that can be told."""
    place = re.search(r"at line (\d+)", str(error))
    lines = text.splitlines()
    if place is None or not 0 < int(place[1]) <= len(lines):
        return ""
    line = lines[int(place[1]) - 1].strip()
    key, equals, value = (part.strip() for part in line.partition("="))
    if equals and value.partition("#")[0].strip() == "None":
        return f"\n  {line}\nTOML has no None: leave the key out, and it has its default"
    if equals and (form := value_form(value) or bare(value)):
        return f"\n  {line}\nwrite: {key} = {form.strip(chr(39))}"
    return f"\n  {line}"


def bare(value: str) -> str | None:
    """A text without its quotes in quotes."""
    return json.dumps(value) if re.fullmatch(r"[\w./~:@-]+", value) else None


def not_toml(path: Path, text: str) -> str | None:
    """What to say of a file in another language: which it is, and how it begins in TOML."""
    language = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(path.suffix.lower())
    if language is None:
        return None
    if language == "JSON":
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1)  # a key on each line
    lines = "\n".join(f"  {line}" for line in as_toml(text))
    return (
        f"{path} is {language}, and a config is TOML: a section in brackets, and key = value below "
        f"it, as in {path.with_suffix('.toml').name}:\n{lines}"
    )


def as_toml(text: str) -> Iterator[str]:
    """The first keys of a YAML or JSON file under the names and sections that they have here."""
    keys = all_keys()
    sections: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        found = LEAF.match(line)
        if found and found[1] not in OTHER_VALUES and (key := key_meant(found[1])) in keys:
            section, _, name = str(key).rpartition(".")
            value = re.sub(r"\s+#.*", "", found[2])
            sections.setdefault(section, {}).setdefault(name, quoted(value))
        if sum(map(len, sections.values())) == SHOWN:
            break
    for section, values in (sections or {"optim": {"lr": "1e-5"}}).items():
        yield f"[{section}]"
        yield from (f"{name} = {value}" for name, value in values.items())
