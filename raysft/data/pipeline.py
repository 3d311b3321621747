"""Chunks of raw records to token arrays: the work that is spread over a machine or a cluster."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.data.encoding import unwritten_in
from raysft.data.formats import FORMATS, found_in, renamed, to_conversations
from raysft.data.json_files import json_message
from raysft.data.raw import Bad, Line, not_utf8
from raysft.data.read import Chunk
from raysft.data.shapes import unread_fields
from raysft.data.template import Segment, Template, to_segments
from raysft.data.tokenize import Example, encode, window
from raysft.data.turns import (
    Conversation,
    NothingToLearn,
    Record,
    RecordError,
    is_blank,
    texts_of,
)

# What is known of each record that is kept; lengths in tokens.
RECORD = np.dtype(
    [
        ("length", "i4"),  # as kept
        ("supervised", "i4"),  # trained predictions as kept: the first token has none
        ("full_length", "i4"),  # before any cut, as are the next three
        ("lead", "i4"),  # before the first answer
        ("first_end", "i4"),  # up to the end of the first answer
        ("answers", "i4"),  # supervised tokens
        ("ended", "?"),  # the last answer kept has its end token
        ("space_before_answer", "?"),
        ("special_in_text", "?"),
        ("unwritten", "?"),  # some of its characters, by this tokenizer
        ("empty_answer", "?"),  # among others, and not trained
        ("blank_prompt", "?"),
        ("unanswered", "?"),  # turns after the last answer, which are left out
        ("key", "u8"),  # equal for equal texts
        ("source", "u2"),  # index in the mixture
    ]
)


@dataclass(frozen=True)
class Recipe:
    """All that decides what becomes of a raw record."""

    template: Template
    formats: tuple[str, ...]  # of each source
    fields: tuple[dict[str, str], ...]
    seq_len: int
    truncate: bool
    last_turn_only: bool


@dataclass
class Part:
    """What became of a chunk of records."""

    input_ids: NDArray[np.int32]  # [tokens]
    loss_mask: NDArray[np.bool_]  # [tokens]
    records: NDArray[Any]  # RECORD [conversations kept]
    num_read: int
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> place
    first_bad: str | None = None  # place and message of the first record that is wrong
    unwritten: Counter[str] = field(default_factory=Counter)  # character -> records with it
    unread: Counter[str] = field(default_factory=Counter)  # field with text that is not read
    mapped: Counter[str] = field(default_factory=Counter)  # "source.known name" of data.fields

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, where)


class Draft(NamedTuple):
    """A conversation on its way from text to tokens."""

    where: str
    conversation: Conversation
    segments: list[Segment]


def process(chunk: Chunk, recipe: Recipe) -> Part:
    part = Part(np.zeros(0, np.int32), np.zeros(0, np.bool_), np.zeros(0, RECORD), 0)
    drafts: list[Draft] = []
    for number, value in zip(chunk.numbers, chunk.values, strict=True):
        where = f"{chunk.place} {number}"
        part.num_read += 1
        try:
            raw = raw_record(value)
            fields = recipe.fields[chunk.source]
            part.mapped.update(f"{chunk.source}.{known}" for known in found_in(raw, fields))
            record = renamed(raw, fields)
            drafts += [Draft(where, *pair) for pair in parsed(record, recipe, chunk.source)]
            format_name = recipe.formats[chunk.source]
            part.unread.update(unread_fields(raw, record, fields, format_name))
        except NothingToLearn as error:
            part.drop(str(error), where)
        except RecordError as error:
            part.first_bad = part.first_bad or f"{where}: {error}"
            part.drop(value.reason if isinstance(value, Bad) else reason_of(error.reason), where)
    rows: list[tuple[Any, ...]] = []
    ids: list[NDArray[np.int32]] = []
    masks: list[NDArray[np.bool_]] = []
    encoded = encode(recipe.template, [draft.segments for draft in drafts])
    for draft, example in zip(drafts, encoded, strict=True):
        kept = window(example, recipe.seq_len)
        words = "".join(text for message in draft.conversation for text in texts_of(message))
        lost = unwritten_in(recipe.template, words)
        row = describe(example, kept, draft, chunk.source, recipe.template, lost)
        if not recipe.truncate and len(example.input_ids) > recipe.seq_len:
            part.drop("longer than batch.seq_len", draft.where)
        elif not row[1]:
            part.drop("no supervised token within batch.seq_len", draft.where)
        else:
            rows.append(row)
            part.unwritten.update(lost)
            ids.append(example.input_ids[kept.begin : kept.end])
            masks.append(example.loss_mask[kept.begin : kept.end])
    if rows:
        part.records = np.array(rows, dtype=RECORD)
        part.input_ids, part.loss_mask = np.concatenate(ids), np.concatenate(masks)
    return part


def reason_of(message: str) -> str:
    return "malformed" if message.startswith("not valid") else message


def parse(value: Any, recipe: Recipe, source: int) -> list[tuple[Conversation, list[Segment]]]:
    """Raises RecordError."""
    return parsed(renamed(raw_record(value), recipe.fields[source]), recipe, source)


def raw_record(value: Any) -> Any:
    """Raises RecordError."""
    if isinstance(value, Bad):
        raise RecordError(value.message)
    return load_json(value.json) if isinstance(value, Line) else value


def parsed(record: Record, recipe: Recipe, source: int) -> list[tuple[Conversation, list[Segment]]]:
    """Raises RecordError."""
    result = []
    for conversation in to_conversations(record, FORMATS[recipe.formats[source]]):
        check_encodable(conversation)
        segments = to_segments(conversation, recipe.template, last_turn_only=recipe.last_turn_only)
        result.append((conversation, segments))
    return result


def check_encodable(conversation: Conversation) -> None:
    """JSON can escape half of a character, which no tokenizer takes."""
    try:
        "".join(text for message in conversation for text in texts_of(message)).encode()
    except UnicodeEncodeError:
        raise RecordError("its text holds half of a surrogate pair") from None


def load_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        raise RecordError(not_utf8(line)) from None
    except (ValueError, RecursionError) as error:
        raise RecordError(json_message(error)) from None


def describe(
    example: Example,
    kept: tuple[int, int],
    draft: Draft,
    source: int,
    template: Template,
    lost: list[str],
) -> tuple[Any, ...]:
    """One row of RECORD."""
    begin, end = kept
    prompts = [s for s in draft.segments if not s.supervised]
    words = [text for message in draft.conversation for text in texts_of(message)]
    questions = [m.content for m in draft.conversation if m.role == "user"]
    return (
        end - begin,
        int(example.loss_mask[begin + 1 : end].sum()),
        len(example.input_ids),
        example.answers[0][0],
        example.answers[0][1],
        int(example.loss_mask.sum()),
        any(answer_end == end for _, answer_end in example.answers),
        ends_in_space(draft.segments),
        any(template.special.search(text) for text in words),
        bool(lost),
        any(m.role == "assistant" and is_blank(m) for m in draft.conversation),
        bool(prompts) and not any(text.strip() for text in questions),
        draft.conversation[-1].role not in ("assistant", "text"),
        key_of(draft.segments),
        source,
    )


def ends_in_space(segments: list[Segment]) -> bool:
    """A prompt's last character is a space, which GPT-2's BPE would join to the answer's word."""
    return any(
        after.supervised and not before.supervised and before.text[-1:] in (" ", "\t")
        for before, after in pairwise(segments)
    )


def key_of(segments: list[Segment]) -> int:
    digest = blake2b(digest_size=8)
    for segment in segments:
        digest.update(segment.text.encode() + b"\0")
    return int.from_bytes(digest.digest(), "little")


def process_all(chunks: Iterable[Chunk], recipe: Recipe, *, parallel: bool) -> Iterator[Part]:
    """The parts in the order of the chunks, whoever computes them."""
    if not parallel:
        return (process(chunk, recipe) for chunk in chunks)
    return process_on_ray(chunks, recipe)


def process_on_ray(chunks: Iterable[Chunk], recipe: Recipe) -> Iterator[Part]:
    """One actor a free CPU, each with the recipe, and at most two chunks in flight for each.

    Chunks are read here and travel by the object store, so that only this node needs the files.
    """
    import ray

    count = int(ray.available_resources().get("CPU", 0))
    if count < 2:  # busy with other work: nothing is gained, and actors might wait for ever
        yield from process_all(chunks, recipe, parallel=False)
        return
    environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}}
    options = {"num_cpus": 1, "max_restarts": 2, "max_task_retries": 2}  # of a lost node
    Remote = ray.remote(runtime_env=environment, **options)(Processor)
    shared = ray.put(recipe)
    actors = [Remote.remote(shared) for _ in range(count)]
    pending: list[Any] = []
    try:
        for index, chunk in enumerate(chunks):
            if len(pending) == 2 * count:
                yield ray.get(pending.pop(0))
            pending.append(actors[index % count].process.remote(chunk))
        while pending:
            yield ray.get(pending.pop(0))
    finally:
        for actor in actors:
            ray.kill(actor)


class Processor:
    """Holds the recipe in a Ray actor, because a tokenizer takes long to unpickle."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def process(self, chunk: Chunk) -> Part:
        return process(chunk, self.recipe)
