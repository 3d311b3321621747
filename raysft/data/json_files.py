"""Files of JSON to raw records: one a line, or the elements of lists, however large."""

import io
import json
import re
from contextlib import suppress
from typing import IO, Any, cast

from raysft.data.containers import BLOCK, File
from raysft.data.raw import (
    MAX_RECORD_BYTES,
    TOO_LONG,
    Bad,
    Line,
    Numbered,
    is_utf8,
    lost,
    not_utf8,
    not_utf8_text,
)
from raysft.data.turns import RecordError

BETWEEN = re.compile(r"[\s,]*")  # what separates the elements of a list
SPACE = re.compile(r"\s*")


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
    """Lists of records, one after the other, or records in a row, or one a line."""
    buffered = cast(io.BufferedReader, stream)
    start = buffered.peek(1).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    first, line_end, _ = start.partition(b"\n")
    if start.startswith(b"[") or (line_end and goes_on(first)):
        return read_values(buffered, file)
    return opened(read_lines(buffered, file))


def goes_on(line: bytes) -> bool:
    """Whether a line is the beginning of an object that takes several."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def opened(lines: Numbered) -> Numbered:
    """The lines, and in the place of one that is a list its elements."""
    for number, value in lines:
        values = [value]
        if isinstance(value, Line) and value.json.lstrip()[:1] == b"[":
            with suppress(ValueError, RecursionError):
                values = json.loads(value.json)
        for one in values:
            yield number, one


class Text:
    """A block of a text, its place in it, and the number of the line where the block begins."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.file = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        self.buffer, self.place, self.line = "", 0, 1
        self.read_more()

    def read_more(self) -> bool:
        """Forget what has been read, and read on."""
        more = self.file.read(BLOCK)
        self.line += self.buffer.count("\n", 0, self.place)
        self.buffer, self.place = self.buffer[self.place :] + more, 0
        return bool(more)

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Go over all that matches; the character after it, or "" at the end of the file."""
        while True:
            self.place = pattern.match(self.buffer, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if not self.read_more():
                return ""


def read_values(stream: IO[bytes], file: File) -> Numbered:
    """The elements of the lists, and the objects beside them, holding no more than a block."""
    text = Text(stream)
    decoder = json.JSONDecoder()
    number, in_list = 1, False
    while True:
        following = text.skip(BETWEEN if in_list else SPACE)
        if in_list and following in ("]", ""):
            if not following:
                yield number, lost(file, "the list is not closed")
                return
            in_list, text.place = False, text.place + 1
            continue
        if not in_list and following in ("[", ""):
            if not following:
                return
            in_list, text.place = True, text.place + 1
            continue
        if not in_list and following != "{":
            line = text.line + text.buffer.count("\n", 0, text.place)
            yield number, lost(file, f"not valid JSON: text between or after lists at line {line}")
            return
        value, end = next_value(text, decoder, file, in_list=in_list)
        if not end:  # of what is lost
            yield number, value
            return
        content = text.buffer[text.place : end]
        yield number, value if is_utf8(content) else Bad(not_utf8_text(content))
        text.place, number = end, number + 1


def next_value(
    text: Text, decoder: json.JSONDecoder, file: File, *, in_list: bool
) -> tuple[object, int]:
    """The value here and where it ends in the block; or why the rest is lost, and 0."""
    while True:
        try:
            problem = "the list is not closed"
            value, end = decoder.raw_decode(text.buffer, text.place)
            if end < len(text.buffer) or not in_list:
                return value, end
        except (ValueError, RecursionError) as error:
            if len(text.buffer) - text.place > MAX_RECORD_BYTES:
                return lost(file, TOO_LONG), 0
            problem = json_message(error, text.line)
            if is_mistake(error, text.buffer):
                return lost(file, problem), 0
        if not text.read_more():  # it may have been the beginning of something longer
            return lost(file, problem), 0


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


def raw_record(value: Any) -> Any:
    """Raises RecordError."""
    if isinstance(value, Bad):
        raise RecordError(value.message)
    return load_json(value.json) if isinstance(value, Line) else value


def load_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        raise RecordError(not_utf8(line)) from None
    except (ValueError, RecursionError) as error:
        raise RecordError(json_message(error)) from None
