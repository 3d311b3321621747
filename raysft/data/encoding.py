"""Text between special tokens to ids: those that transformers gives the whole text in one call.

A tokenizer cuts a text at its special tokens first, and encodes what lies between them by itself.
So does this module, but for two things that only a whole text shows: special tokens that eat the
white space beside them, and the space that SentencePiece puts before a text's first word.

Where an answer begins in such a stretch of text, the tokens of the prompt are kept, because a
server sends them, and the answer is encoded as what goes on after them. No merge across the border
is lost by that where there is none: tokens right of a border that no merge crosses are the same
with and without what is left of it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from raysft.data.render import Template

# What a Unicode-aware \s is for the tokenizers library, which is not what str.strip() takes.
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
RARE = "\u0e01\u65e5\U0001f642\U000e0fff"  # Thai, Chinese, a face, and a character not yet given
CONTEXTS = ("\n", ".", "0", "a")  # put before a text, so that it does not begin one


class Span(NamedTuple):
    """Text without special tokens that is all prompt, or all supervised."""

    text: str
    supervised: bool


class Stretch(NamedTuple):
    """What stands between two special tokens."""

    spans: list[Span]
    first: bool  # nothing stands before it


class Special(NamedTuple):
    id: int
    supervised: bool
    eats_left: bool = False  # white space
    eats_right: bool = False


class Habits(NamedTuple):
    """How a tokenizer begins a text, and whether it can write any."""

    anywhere_alike: bool  # with the tokens that it would have in the midst of another
    restarts: bool  # after a special token as at the start
    writes_all: bool  # characters of every script, as bytes where it has no other token


def stretches(
    template: Template, segments: Sequence[tuple[str, bool, bool]]
) -> Iterator[Special | Stretch]:
    """Special tokens, and what lies between them. A segment is (text, supervised, markup)."""
    spans: list[Span] = []
    first, eaten = True, False
    for text, supervised, markup in segments:
        for part in cut_at_specials(template, text, supervised) if markup else (text,):
            if isinstance(part, str):
                part = part.lstrip(WHITE) if eaten else part
                eaten = eaten and not part
                if part:
                    spans = joined(spans, Span(part, supervised))
                continue
            spans = rstripped(spans) if part.eats_left else spans
            if spans:
                yield Stretch(spans, first)
            yield part
            spans, first, eaten = [], False, part.eats_right
    if spans:
        yield Stretch(spans, first)


def joined(spans: list[Span], span: Span) -> list[Span]:
    if spans and spans[-1].supervised == span.supervised:
        return [*spans[:-1], Span(spans[-1].text + span.text, span.supervised)]
    return [*spans, span]


def rstripped(spans: list[Span]) -> list[Span]:
    spans = list(spans)
    while spans and not (text := spans[-1].text.rstrip(WHITE)):
        spans.pop()
    return [*spans[:-1], spans[-1]._replace(text=text)] if spans else []


@lru_cache(maxsize=4096)
def cut_at_specials(template: Template, text: str, supervised: bool) -> list[str | Special]:
    specials = {
        token: special._replace(supervised=supervised)
        for token, special in specials_of(template).items()
    }
    parts: list[str | Special] = []
    end = 0
    for found in template.special.finditer(text):
        parts += [text[end : found.start()], specials[found[0]]]
        end = found.end()
    return [part for part in (*parts, text[end:]) if part]


@lru_cache(maxsize=16)
def specials_of(template: Template) -> dict[str, Special]:
    tokenizer = template.tokenizer
    known = {
        token: Special(int(tokenizer.convert_tokens_to_ids(token)), False)
        for token in tokenizer.all_special_tokens
    }
    added = tokenizer.added_tokens_decoder.items()
    return known | {
        token.content: Special(id, False, token.lstrip, token.rstrip)
        for id, token in added
        if token.special
    }


@lru_cache(maxsize=16)
def habits_of(template: Template) -> Habits:
    words = ("a", "b c", "1")
    tokenizer, end = template.tokenizer, template.tokenizer.eos_token
    alone, after = (
        encode_texts(tokenizer, [context + word for word in words]) for context in ("", "\n")
    )
    (line,) = encode_texts(tokenizer, ["\n"])
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False
    ended = [backend.encode(end + word, add_special_tokens=False).ids for word in words]
    return Habits(
        anywhere_alike=after == [line + ids for ids in alone],
        restarts=[ids[1:] for ids in ended] == alone,
        writes_all=not any(unwritten(template, letter) for letter in RARE),
    )


@lru_cache(maxsize=1 << 16)
def unwritten(template: Template, letter: str) -> bool:
    """Whether the tokenizer leaves the character out, or puts its unknown token in its place."""
    tokenizer = template.tokenizer
    (ids,) = encode_texts(tokenizer, [letter])
    model = tokenizer.backend_tokenizer.model
    unknown = getattr(model, "unk_token", None) or tokenizer.unk_token
    if unknown is not None and tokenizer.convert_tokens_to_ids(unknown) in ids:
        return True
    return not (letter.isspace() or str(tokenizer.decode(ids)).strip())


def unwritten_in(template: Template, text: str) -> list[str]:
    if habits_of(template).writes_all:
        return []
    return sorted(letter for letter in set(text) if unwritten(template, letter))


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each; no special token, whatever the text spells. Straight from the library below
    transformers: it takes a quarter less time."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as other text
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def needed(stretch: Stretch, habits: Habits) -> Iterator[str]:
    """The texts whose ids `stretch_ids` will ask for, but in rare cases."""
    before = ""
    for text, _ in stretch.spans:
        if begins_alike(stretch, before, habits):
            yield text
        else:
            context = before or CONTEXTS[0]
            yield from (context, context + text)
        before += text


def begins_alike(stretch: Stretch, before: str, habits: Habits) -> bool:
    return habits.anywhere_alike or (not before and (stretch.first or habits.restarts))


def stretch_ids(
    stretch: Stretch, habits: Habits, ids_of: Callable[[str], list[int]]
) -> Iterator[list[int]]:
    """Ids of each span."""
    before = ""
    for text, _ in stretch.spans:
        alike = begins_alike(stretch, before, habits)
        yield ids_of(text) if alike else continuation(before, text, ids_of)
        before += text


def continuation(before: str, text: str, ids_of: Callable[[str], list[int]]) -> list[int]:
    """Ids of a text that does not begin one: seen after another, that no token joins it to."""
    for context in filter(None, (before, *CONTEXTS)):
        lead, whole = ids_of(context), ids_of(context + text)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    return ids_of(text)
