"""Single records as tokens, each told what it is: what a person checks before any training."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from raysft.config.schema import Config
from raysft.data.dataset import make_recipe
from raysft.data.pipeline import Recipe, parse
from raysft.data.read import Chunk, read_chunks
from raysft.data.sources import sources
from raysft.data.template import Template
from raysft.data.tokenize import encode, window
from raysft.data.turns import NothingToLearn, RecordError


class Token(NamedTuple):
    text: str
    supervised: bool
    special: bool
    cut: bool  # does not fit batch.seq_len


class View(NamedTuple):
    """A record as its tokens, or why it has none."""

    where: str
    format: str
    tokens: list[Token]
    problem: str | None = None


def previews(config: Config, template: Template, count: int) -> Iterator[View]:
    """The first `count` records of every source. Raises UserError when there are none."""
    parts = sources(config.data, config.data.path)
    recipe = make_recipe(config, parts, template)
    for index, part in enumerate(parts):
        records = (
            (chunk, number, value)
            for chunk in read_chunks(part, index, seed=config.run.seed)
            for number, value in zip(chunk.numbers, chunk.values, strict=True)
        )
        for chunk, number, value in islice(records, count):
            yield from view(chunk, number, value, recipe)


def view(chunk: Chunk, number: int, value: Any, recipe: Recipe) -> Iterator[View]:
    where, format_name = f"{chunk.place} {number}", recipe.formats[chunk.source]
    try:
        parsed = parse(value, recipe, chunk.source)
    except (RecordError, NothingToLearn) as error:
        yield View(where, format_name, [], str(error))
        return
    tokenizer = recipe.template.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for example in encode(recipe.template, [segments for _, segments in parsed]):
        kept = window(example, recipe.seq_len)
        tokens = [
            Token(
                token_text(tokenizer, int(token)),
                supervised=bool(supervised),
                special=int(token) in special,
                cut=not kept.begin <= position < kept.end,
            )
            for position, (token, supervised) in enumerate(
                zip(example.input_ids, example.loss_mask, strict=True)
            )
        ]
        yield View(where, format_name, tokens)


def token_text(tokenizer: Any, token: int) -> str:
    """Its text; where that is only a part of a character, as its bytes: <e2 80>."""
    text = str(tokenizer.decode([token]))
    if "\ufffd" not in text:
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    letters = tokenizer.convert_ids_to_tokens(token)
    if not all(letter in byte_of for letter in letters):
        return text
    return f"<{bytes(byte_of[letter] for letter in letters).hex(' ')}>"
