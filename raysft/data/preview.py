"""Single records as tokens, each told what it is: what a person checks before any training."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from raysft.config.schema import Config
from raysft.data.encoding import encode_texts
from raysft.data.pipeline import parse
from raysft.data.read import Chunk
from raysft.data.recipe import chunks_of, make_recipe
from raysft.data.rows import Recipe
from raysft.data.sources import sources
from raysft.data.template import Template
from raysft.data.tokenize import encode, pair_windows, window
from raysft.data.turns import NothingToLearn, RecordError

SPELT_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of SentencePiece


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
    recipe = make_recipe(config, parts, template, pairs=None)
    for index, part in enumerate(parts):
        records = (
            (chunk, number, value)
            for chunk in chunks_of(part, index, recipe, config.run.seed)
            for number, value in zip(chunk.numbers, chunk.values, strict=True)
        )
        for chunk, number, value in islice(records, count):
            yield from view(chunk, number, value, recipe)


def view(chunk: Chunk, number: int, value: Any, recipe: Recipe) -> Iterator[View]:
    where, format_name = f"{chunk.place} {number}", recipe.formats[chunk.source]
    try:
        drafts = parse(value, recipe, chunk.source)
    except (RecordError, NothingToLearn) as error:
        yield View(where, format_name, [], str(error))
        return
    tokenizer = recipe.template.tokenizer
    added = tokenizer.added_tokens_decoder.items()
    special = {id: token.content for id, token in added if token.special}
    examples = list(encode(recipe.template, [draft.segments for draft in drafts]))
    if recipe.pairs:
        windows, names = pair_windows(examples, recipe.seq_len), [", chosen", ", rejected"]
    else:
        windows, names = [window(e, recipe.seq_len) for e in examples], [""] * len(examples)
    for example, kept, name in zip(examples, windows, names, strict=True):
        tokens = [
            Token(
                special.get(int(token)) or token_text(tokenizer, int(token)),
                supervised=bool(supervised),
                special=int(token) in special,
                cut=not kept.begin <= position < kept.end,
            )
            for position, (token, supervised) in enumerate(
                zip(example.input_ids, example.loss_mask, strict=True)
            )
        ]
        yield View(where + name, format_name, tokens)


def token_text(tokenizer: Any, token: int) -> str:
    """Its text, with the space that it begins with; a part of a character as its bytes: <e2 80>."""
    spelling = tokenizer.convert_ids_to_tokens(token)
    if byte := SPELT_BYTE.fullmatch(spelling):
        value = int(byte[1], 16)
        return chr(value) if value < 0x80 else f"<{value:02x}>"
    text = text_within(tokenizer, token)
    if "\ufffd" not in text:
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    if not all(letter in byte_of for letter in spelling):
        return text
    return f"<{bytes(byte_of[letter] for letter in spelling).hex(' ')}>"


def text_within(tokenizer: Any, token: int) -> str:
    """What it adds to a text: many decoders take the space off the first token of one."""
    before = encode_texts(tokenizer, ["a"])[0]
    alone, both = (
        str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        for ids in (before, [*before, token])
    )
    return both[len(alone) :] if both.startswith(alone) else str(tokenizer.decode([token]))
