"""Chunks of raw records to token arrays: the work that is spread over a machine or a cluster."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysft.data.formats import FORMATS, found_in, renamed, to_conversations
from raysft.data.json_files import raw_record
from raysft.data.pairs import to_pair
from raysft.data.raw import Bad
from raysft.data.read import Chunk
from raysft.data.rows import RECORD, Draft, Recipe, Row, pair_row, single_row
from raysft.data.shapes import unread_fields
from raysft.data.template import to_segments
from raysft.data.tokenize import encode
from raysft.data.turns import (
    Conversation,
    NothingToLearn,
    Record,
    RecordError,
    texts_of,
)


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
            drafts += [d._replace(where=where) for d in drafted(record, recipe, chunk.source)]
            format_name = recipe.formats[chunk.source]
            part.unread.update(unread_fields(raw, record, fields, format_name))
        except NothingToLearn as error:
            part.drop(str(error), where)
        except RecordError as error:
            part.first_bad = part.first_bad or f"{where}: {error}"
            part.drop(value.reason if isinstance(value, Bad) else reason_of(error.reason), where)
    rows: list[Row] = []
    encoded = list(encode(recipe.template, [draft.segments for draft in drafts]))
    together = 2 if recipe.pairs else 1
    for begin in range(0, len(drafts), together):
        some = drafts[begin : begin + together]
        make = pair_row if recipe.pairs else single_row
        try:
            row = make(some, encoded[begin : begin + together], recipe, chunk.source)
        except NothingToLearn as error:
            part.drop(str(error), some[0].where)
            continue
        rows.append(row)
        part.unwritten.update(row.unwritten)
    if rows:
        part.records = np.array([row.facts for row in rows], dtype=RECORD)
        part.input_ids = np.concatenate([row.input_ids for row in rows])
        part.loss_mask = np.concatenate([row.loss_mask for row in rows])
    return part


def reason_of(message: str) -> str:
    return "malformed" if message.startswith("not valid") else message


def parse(value: Any, recipe: Recipe, source: int) -> list[Draft]:
    """Raises RecordError."""
    return drafted(renamed(raw_record(value), recipe.fields[source]), recipe, source)


def drafted(record: Record, recipe: Recipe, source: int) -> list[Draft]:
    """The conversations of a record; of a pair the chosen one, and then the rejected one.

    Raises RecordError.
    """
    margin = 0.0
    if recipe.pairs:
        *conversations, margin = to_pair(record)
    else:
        conversations = to_conversations(record, FORMATS[recipe.formats[source]])
    result = []
    last_turn_only = recipe.last_turn_only or recipe.pairs
    for conversation in conversations:
        check_encodable(conversation)
        segments = to_segments(conversation, recipe.template, last_turn_only=last_turn_only)
        result.append(Draft(conversation, segments, margin))
    return result


def check_encodable(conversation: Conversation) -> None:
    """JSON can escape half of a character, which no tokenizer takes."""
    try:
        "".join(text for message in conversation for text in texts_of(message)).encode()
    except UnicodeEncodeError:
        raise RecordError("its text holds half of a surrogate pair") from None


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
