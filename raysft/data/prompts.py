"""Questions to a trained model: one that was typed, or a file of them in any format of records."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raysft.config.data import Source
from raysft.data import shapes
from raysft.data.containers import is_data
from raysft.data.formats import FORMATS, detect_format
from raysft.data.json_files import raw_record
from raysft.data.pipeline import check_encodable
from raysft.data.read import read_chunks
from raysft.data.turns import Conversation, Message, Record, RecordError
from raysft.errors import UserError

# The answer of a record is what is asked for: where it stands, this takes its place.
ANSWERS = {"alpaca": shapes.OUTPUT, "prompt_completion": shapes.COMPLETION}


class Prompt(NamedTuple):
    conversation: Conversation  # up to the answer that is asked for
    record: Record  # as it was read
    place: str = "the prompt"  # for errors


def typed(text: str, system: str | None) -> Prompt:
    """Raises UserError for one without words."""
    if not text.strip():
        raise UserError("the prompt is empty: type an instruction, or pipe one in")
    return Prompt(with_system([Message("user", text)], system), {"prompt": text})


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """Behind a system turn, where one is given and the conversation has none of its own."""
    if system is None or any(message.role == "system" for message in conversation):
        return conversation
    return [Message("system", system), *conversation]


def read_prompts(path: Path, system: str | None) -> list[Prompt]:
    """A file that data.path could name, whose answers are not read and may be absent; a file of any
    other name is a prompt a line. Raises UserError, which names the line.
    """
    if not path.is_file():
        raise UserError(f"--prompts: there is no file {path}")
    records = read_records(path) if is_data(path.name) else read_plain(path)
    found = []
    for place, value in records:
        try:
            record = raw_record(value)
            asked = conversations(record)
            for conversation in asked:
                check_encodable(conversation)
        except RecordError as error:
            raise UserError(f"--prompts: {place}: {error}") from None
        found += [Prompt(with_system(one, system), record, place) for one in asked]
    if not found:
        raise UserError(f"--prompts: {path} holds no prompts")
    return found


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    for chunk in read_chunks(Source(path=str(path)), 0, seed=0):
        for number, value in zip(chunk.numbers, chunk.values, strict=True):
            yield f"{chunk.place} {number}", value


def read_plain(path: Path) -> Iterator[tuple[str, Any]]:
    """Raises UserError where the file is no text."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path} cannot be read as text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path} line {number}", {"prompt": line}


def conversations(record: Record) -> list[Conversation]:
    """What the record asks, without its answer. Raises RecordError."""
    if not isinstance(record, Mapping):
        raise RecordError(f"a prompt is a JSON object, but this is {type(record).__name__}")
    name = detect_format(record)
    if name == "text":
        raise RecordError("a text asks nothing: give it as a prompt")
    if name in ANSWERS:
        key = shapes.chosen(record, ANSWERS[name]) or ANSWERS[name][0]
        turns = isinstance(record.get(shapes.chosen(record, shapes.PROMPT) or ""), list)
        # A list of turns goes with a list of turns, and a bad answer (KTO) is no obstacle here.
        record = {n: v for n, v in record.items() if n != "label"} | {key: [] if turns else "?"}
    return [asked(conversation) for conversation in FORMATS[name](record)]


def asked(conversation: Conversation) -> Conversation:
    """Up to the last turn that is no answer. Raises RecordError where there is none."""
    while conversation and conversation[-1].role == "assistant":
        conversation = conversation[:-1]
    if not any(message.role in ("user", "tool") for message in conversation):
        raise RecordError("no turn asks anything")
    return conversation


def as_json(prompt: Prompt, text: str, finish: str) -> str:
    """The record with what was generated, as a line of JSON."""
    made = {"generated": text, "finish_reason": finish}
    return json.dumps({**prompt.record, **made}, ensure_ascii=False, default=str)
