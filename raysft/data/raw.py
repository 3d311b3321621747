"""What readers give: raw records, and what stands where one could not be read.

A bad record is a value like any other (`Bad`), so that the records after it can still be read.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from raysft.data.containers import File

MAX_RECORD_BYTES = 16 << 20  # longer ones are taken for a mistake, and never held in memory
CHUNK_RECORDS = 1000
TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


class Bad(NamedTuple):
    """Stands where a record could not be read."""

    message: str
    reason: str = "malformed"  # what it is counted as


class Line(NamedTuple):
    """A record still to be parsed, which is left to whoever tokenises it."""

    json: bytes


Numbered = Iterator[tuple[int, Any]]


def lost(file: File, what: str) -> Bad:
    return Bad(f"{what}; the rest of this file is not read", f"the rest of {file.name} is lost")


def is_utf8(text: str) -> bool:
    """False where bytes that are no UTF-8 were read as lone surrogates."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def not_utf8(content: bytes) -> str:
    """Why it is none, and what it may be instead."""
    try:
        content.decode("utf-8-sig")
        return "not valid UTF-8"
    except UnicodeDecodeError as error:
        message = f"not valid UTF-8: {error.reason} at byte {error.start + 1}"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return message
    return f"{message}. It may be Windows-1252: iconv -f windows-1252 -t utf-8 FILE > NEW"


def not_utf8_text(text: str) -> str:
    """As `not_utf8`, of a text whose wrong bytes were read as lone surrogates."""
    return not_utf8(text.encode("utf-8", "surrogateescape"))
