"""What a config says of its records: how each becomes tokens, and which are read."""

from collections.abc import Iterator

from raysft.config.data import Data, Source
from raysft.config.schema import Config
from raysft.data.detect import check_first, format_of, look
from raysft.data.formats import PAIRS
from raysft.data.pairs import paired
from raysft.data.read import Chunk, read_chunks
from raysft.data.rows import Recipe
from raysft.data.template import Template
from raysft.errors import UserError


def mappings(parts: list[Source], data: Data) -> tuple[dict[str, str], ...]:
    return tuple((part.fields or data.fields).model_dump(exclude_none=True) for part in parts)


def make_recipe(
    config: Config, parts: list[Source], template: Template, *, pairs: bool | None = False
) -> Recipe:
    """pairs: as in `dataset.prepare`. Raises UserError."""
    data = config.data
    fields = mappings(parts, data)
    looks = [look(part, index, config.run.seed) for index, part in enumerate(parts)]
    check_first(fields, looks)
    formats = tuple(
        format_of(part, its, first, pairs=pairs)
        for part, its, first in zip(parts, fields, looks, strict=True)
    )
    if len({name in PAIRS for name in formats}) > 1:
        raise UserError(
            f"data.path mixes pairs and single answers ({', '.join(formats)}): a run learns from "
            "one or the other"
        )
    return Recipe(
        template=template,
        formats=formats,
        fields=fields,
        seq_len=config.batch.seq_len,
        truncate=data.truncate,
        last_turn_only=data.train_on == "last_turn",
        pairs=formats[0] in PAIRS,
    )


def chunks_of(part: Source, index: int, recipe: Recipe, seed: int) -> Iterator[Chunk]:
    """The records of a source as its format takes them."""
    chunks = read_chunks(part, index, seed=seed)
    if recipe.formats[index] != "labelled":
        return chunks
    return paired(chunks, recipe.fields[index])


def limited(
    parts: list[Source], recipe: Recipe, seed: int, max_records: int | None
) -> Iterator[Chunk]:
    """The chunks of all sources, of each at most `max_records`."""
    for index, part in enumerate(parts):
        left = max_records
        for chunk in chunks_of(part, index, recipe, seed):
            if left is None:
                yield chunk
                continue
            yield Chunk(chunk.source, chunk.place, chunk.numbers[:left], chunk.values[:left])
            left -= len(chunk.values)
            if left <= 0:
                break
