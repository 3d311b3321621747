"""Preference records to pairs: one prompt, an answer that is better and one that is worse."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from raysft.data import shapes
from raysft.data.formats import (
    PROMPT,
    history,
    instruction_and_input,
    renamed,
    turn,
    with_system,
)
from raysft.data.json_files import raw_record
from raysft.data.read import Chunk
from raysft.data.shapes import from_json, is_number, kind_of, list_of, text_of
from raysft.data.turns import Conversation, Message, NothingToLearn, Record, RecordError, is_blank

# A transcript as hh-rlhf has it.
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
LEFT_OVER = "its prompt has no answer of the other kind"  # of a labelled answer
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Pair(NamedTuple):
    """Two conversations that differ in their last turn, which is an answer in both."""

    chosen: Conversation
    rejected: Conversation
    margin: float  # by how much its scores say that the one is better; 0 where it has none


def to_pair(record: Record) -> Pair:
    """The pair of a record, whatever the shape.

    `chosen` and `rejected` are answers to the record's prompt: texts, turns, or lists of turns. Or
    they are whole conversations, as lists of turns or as transcripts ("\\n\\nHuman: ...").

    Raises RecordError, and NothingToLearn where the two tell nothing apart.
    """
    if "label" in record and shapes.chosen(record, shapes.CHOSEN) is None:
        raise NothingToLearn(LEFT_OVER)
    halves = [half_of(record, names) for names in (shapes.CHOSEN, shapes.REJECTED)]
    whole = all(half[0].role != "assistant" for half in halves)
    prompt = [] if whole else prompt_of(record)
    chosen, rejected = (with_system(record, [*prompt, *half]) for half in halves)
    if chosen[:-1] != rejected[:-1]:
        raise NothingToLearn("the two differ before their last turn")
    if {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        raise NothingToLearn("the last turn is no answer")
    if is_blank(chosen[-1]) or is_blank(rejected[-1]):
        raise NothingToLearn("an answer is empty")
    if chosen[-1] == rejected[-1]:
        raise NothingToLearn("both answers are the same")
    if len(chosen) == 1:
        raise RecordError("the pair has no prompt")
    return Pair(answered(chosen), answered(rejected), margin_of(record))


def answered(conversation: Conversation) -> Conversation:
    """Trained in the last turn, whatever it says of itself."""
    return [*conversation[:-1], conversation[-1]._replace(trained=True)]


def half_of(record: Record, names: shapes.Names) -> Conversation:
    """What stands under `chosen` or `rejected`. Raises RecordError."""
    name = shapes.required(record, names)
    value = from_json(record[name])
    if isinstance(value, Mapping):
        return [turn(value)]
    if isinstance(value, list) and value:
        return list(map(turn, value))
    if isinstance(value, str):
        return transcript(value) or [Message("assistant", value)]
    if value is None or value == []:
        raise NothingToLearn("an answer is empty")
    raise RecordError(f"field {name!r} is {kind_of(value)}, neither text nor turns")


def prompt_of(record: Record) -> Conversation:
    """The turns that both answers follow. Raises RecordError."""
    for names in (shapes.CONVERSATIONS, shapes.MESSAGES):
        if shapes.chosen(record, names):
            return list(map(turn, list_of(record, *names)))
    if "instruction" in record:
        question = Message("user", instruction_and_input(record, record))
        return [*history(record), question]
    name = shapes.required(record, PROMPT)
    if isinstance(from_json(record[name]), list):
        return list(map(turn, list_of(record, name)))
    text = text_of(record, name)
    turns = transcript(text) or [Message("user", text)]
    asks_for_answer = turns[-1].role == "assistant" and is_blank(turns[-1])
    return turns[:-1] if asks_for_answer else turns


def transcript(text: str) -> Conversation:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; none where a text is no transcript."""
    before, *parts = SPEAKER.split(text)
    if before.strip() or not parts or parts[0] != "Human":
        return []
    return [
        Message(SPEAKERS[speaker], words.strip())
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def margin_of(record: Record) -> float:
    """Of a `margin`, or of the two scores. Raises RecordError where one is no number."""
    found = [shapes.chosen(record, names) for names in shapes.SCORES]
    if name := shapes.chosen(record, shapes.MARGIN):
        return score(record, name)
    if found[0] is None or found[1] is None:
        return 0.0
    return score(record, found[0]) - score(record, found[1])


def score(record: Record, name: str) -> float:
    """Raises RecordError."""
    value = record[name]
    if isinstance(value, str):  # as CSV has it
        try:
            value = float(value)
        except ValueError:
            raise RecordError(f"field {name!r} is no number", f" (it is {value!r})") from None
    if not is_number(value):
        raise RecordError(f"field {name!r} is no number", f" (it is {value!r})")
    return float(value)


Fields = Mapping[str, str]
Placed = tuple[Chunk, int, Any]  # a record as it was read, with its chunk and its number


def paired(chunks: Iterable[Chunk], fields: Fields) -> Iterator[Chunk]:
    """Of single answers with a label (KTO), the pairs: the first good answer to a prompt with its
    first bad one, and so on. What is left over stays alone. All answers are held in memory."""
    for _, some in groupby(matched(chunks, fields), key=lambda placed: id(placed[0])):
        of_chunk, numbers, values = zip(*some, strict=True)
        yield of_chunk[0]._replace(numbers=list(numbers), values=list(values))


def matched(chunks: Iterable[Chunk], fields: Fields) -> Iterator[Placed]:
    kinds: dict[str, tuple[list[Placed], list[Placed]]] = {}
    for chunk in chunks:
        for number, value in zip(chunk.numbers, chunk.values, strict=True):
            try:
                raw = raw_record(value)
                record = renamed(raw, fields)
            except RecordError:  # told by whoever reads it
                yield chunk, number, value
                continue
            is_good = str(record.get("label")).strip().lower() in ("true", "1")
            both = kinds.setdefault(prompt_key(record), ([], []))
            both[0 if is_good else 1].append((chunk, number, raw))
    for good_ones, bad_ones in kinds.values():
        for good, bad in zip(good_ones, bad_ones, strict=False):
            yield good[0], good[1], joined(good[2], bad[2], fields)
        least = min(len(good_ones), len(bad_ones))
        yield from (*good_ones[least:], *bad_ones[least:])


def prompt_key(record: Record) -> str:
    names = (PROMPT, shapes.CONTEXT, shapes.SYSTEM, shapes.TOOLS)
    found = [shapes.chosen(record, group) for group in names]
    return json.dumps([name and record.get(name) for name in found], default=str)


def joined(good: Record, bad: Record, fields: Fields) -> Record:
    """One record of both answers, under the names that its file has for the rest."""
    known = shapes.chosen(renamed(good, fields), shapes.COMPLETION) or "completion"
    name = fields.get(known, known)
    rest = {key: value for key, value in good.items() if key not in (name, "label")}
    return rest | {"chosen": good.get(name), "rejected": bad.get(name)}
