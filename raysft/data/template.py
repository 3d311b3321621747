"""Messages to text segments, each either prompt or supervised, by a Jinja chat template.

A conversation is rendered as transformers renders it. Where its answers lie is told by a layout
that all conversations of the same roles share, or else by the prompts they are generated from.
"""

import re
from dataclasses import replace
from datetime import date
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from raysft.config.near import did_you_mean
from raysft.data.borders import answer_spans, rendered
from raysft.data.layout import fill, layout, shape_of, words_of
from raysft.data.probe import known_forms
from raysft.data.render import (
    SHIELD,
    Template,
    as_turn,
    fitted,
    render,
    special_pattern,
    special_tokens,
)
from raysft.data.turns import Conversation, Message, RecordError
from raysft.errors import UserError

__all__ = ["BUILT_IN", "Segment", "Template", "install_template", "prompt_segments", "to_segments"]

BUILT_IN = ("plain", "alpaca", "chatml")
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


class Segment(NamedTuple):
    text: str
    supervised: bool
    markup: bool = False  # written by the template: a special token in it is meant


def install_template(tokenizer: Any, name: str, day: date | None = None) -> Template:
    """Make `name` the chat template of the tokenizer, which saves it with the model.

    `name` is "auto" (the tokenizer's own, or else "plain"), "tokenizer", a built-in template or a
    Jinja file. "chatml" adds its two special tokens where the tokenizer has none. A template that
    writes today's date writes `day` (default: today) ever after.

    Raises UserError: no such template, one that does not render a question and its answer, or one
    whose answers end in no special token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"model.tokenizer: {tokenizer.name_or_path} has no tokenizer.json; convert it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of a library that has"
        )
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "plain"
    sources = own_templates(tokenizer) if name == "tokenizer" else {"default": read_template(name)}
    if name in BUILT_IN and adds_bos(tokenizer):
        sources["default"] = "{{ bos_token }}" + sources["default"]
    before = len(tokenizer)
    if name == "chatml":
        missing = [t for t in CHATML_TOKENS if t not in special_tokens(tokenizer)]
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    if tokenizer.eos_token is None:
        raise UserError(no_end_token(tokenizer.name_or_path))
    for limit in (
        tokenizer.backend_tokenizer.no_truncation,
        tokenizer.backend_tokenizer.no_padding,
    ):
        limit()  # some tokenizer.json files say otherwise, and this library obeys them silently
    sources = {each: dated(source, day or date.today()) for each, source in sources.items()}
    source = sources["default"]
    tokenizer.chat_template = source if len(sources) == 1 else sources
    template = Template(
        name, source, tokenizer, special_pattern(tokenizer),
        num_added=len(tokenizer) - before, tools_source=sources.get("tool_use", source),
    )  # fmt: skip
    return replace(
        template,
        end_token=find_end_token(template),
        knows=known_forms(template),
        names=frozenset(re.findall(r"\w+", source + template.tools_source)),
    )


def own_templates(tokenizer: Any) -> dict[str, str]:
    """By name; "default" is always there. Raises UserError where it is not."""
    own = tokenizer.chat_template
    if not own:
        raise UserError(no_template(tokenizer.name_or_path))
    sources = dict(own) if isinstance(own, dict) else {"default": own}
    if "default" not in sources:
        raise UserError(
            f"data.template: the tokenizer {tokenizer.name_or_path} has the chat templates "
            f"{', '.join(sorted(sources))}, none of them its default: write the one that you want "
            "to a Jinja file, and set data.template to its path"
        )
    return sources


def no_template(tokenizer: object) -> str:
    return (
        f"data.template: the tokenizer {tokenizer} has no chat template of its own; take one of "
        f"{', '.join(BUILT_IN)} or a Jinja file"
    )


def no_end_token(tokenizer: object) -> str:
    return (
        f"model.tokenizer: {tokenizer} has no end token (eos_token), which every response must end "
        "with. Set eos_token in its tokenizer_config.json."
    )


def dated(source: str, day: date) -> str:
    """With this date as text wherever the template asks for today's: else the prompts of training,
    of tomorrow's generation and of the tokens in the cache would differ."""
    return TODAY.sub(lambda found: repr(day.strftime(found[2])), source)


def find_end_token(template: Template) -> str:
    """What the template closes an answer with. Raises UserError as `install_template` does."""
    name = template.name
    try:
        pieces = layout(template, (("user", False), ("assistant", False)))
        answer = [piece for piece in pieces if piece.answer is not None][-1].text
    except RecordError as error:
        if not (thoughtful := after_thought(template)):
            raise UserError(
                f"data.template: {name} renders no question and answer: {error}"
            ) from None
        answer = thoughtful
    ends = template.special.findall(answer)
    if not ends:
        raise UserError(
            f"data.template: {name} ends an answer without a special token, so that a model could "
            "not learn to stop. Put {{ eos_token }} after the assistant's content."
        )
    return str(ends[-1])


def after_thought(template: Template) -> str:
    """An answer with a thought, which some templates open in the prompt; "" where it fits none."""
    turns = [Message("user", "q"), Message("assistant", "a", reasoning="t")]
    try:
        whole = rendered(template, turns, None, answer_next=False)
        begin, end = answer_spans(whole, turns, [1])[1]
    except RecordError:
        return ""
    return whole.text[begin:end]


def read_template(name: str) -> str:
    if name in BUILT_IN:
        return (files("raysft") / "templates" / f"{name}.jinja").read_text()
    if not Path(name).is_file():
        known = ("auto", "tokenizer", *BUILT_IN)
        raise UserError(
            f"data.template: no template or Jinja file {name!r}{did_you_mean(name, known)}; "
            f"built in are {', '.join(BUILT_IN)}"
        )
    return Path(name).read_text()


def adds_bos(tokenizer: Any) -> bool:
    """Whether it starts every text with its BOS token, as Llama's does and GPT-2's does not."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def to_segments(
    conversation: Conversation, template: Template, *, last_turn_only: bool = False
) -> list[Segment]:
    """Prompt and supervised segments; every trained assistant turn ends in its end token.

    Raises RecordError where the template refuses the conversation, leaves out some of it, or
    writes the words of a trained answer otherwise than they are.
    """
    if conversation[0].role == "text":
        return document(conversation[0].content, template)
    turns, tools = fitted(template, conversation)
    trained = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    if last_turn_only:
        trained = trained[-1:]
    simple = tools is None and not any(turn.calls or turn.fields for turn in turns)
    if simple and (segments := by_layout(turns, template, trained)):
        return segments
    whole = rendered(template, turns, tools, answer_next=False)
    return cut_at_shields(whole.text, answer_spans(whole, turns, trained))


def by_layout(turns: Conversation, template: Template, trained: list[int]) -> list[Segment] | None:
    """None where the template looks into the words, so that no layout fits."""
    try:
        pieces = layout(template, shape_of(turns))
    except RecordError:
        return None
    filled = fill(pieces, words_of(turns))
    if "".join(filled) != render(template, list(map(as_turn, turns))):
        return None
    return [
        Segment(text, piece.answer in trained, markup=piece.words is None)
        for text, piece in zip(filled, pieces, strict=True)
        if text
    ]


def prompt_segments(conversation: Conversation, template: Template) -> list[Segment]:
    """What to generate the next assistant turn from: the same text as in training before it."""
    turns, tools = fitted(template, conversation)
    return cut_at_shields(rendered(template, turns, tools, answer_next=True).text, {})


def cut_at_shields(text: str, answers: dict[int, tuple[int, int]]) -> list[Segment]:
    """The text of a conversation, cut where answers begin or end, and around each special token
    that is words."""
    cuts = {0, len(text), *(place for span in answers.values() for place in span)}
    words = [found.span() for found in SHIELD.finditer(text)]
    cuts |= {place for span in words for place in span}
    ordered, begins = sorted(cuts), {begin for begin, _ in words}
    segments = []
    for begin, end in pairwise(ordered):
        supervised = any(first <= begin < last for first, last in answers.values())
        is_words = begin in begins
        piece = text[begin + 1 : end - 1] if is_words else text[begin:end]
        segments.append(Segment(piece, supervised, markup=not is_words))
    return segments


def document(text: str, template: Template) -> list[Segment]:
    """A text without turns: all of it is supervised, whatever the template."""
    tokenizer = template.tokenizer
    start = [Segment(tokenizer.bos_token, False, markup=True)] if adds_bos(tokenizer) else []
    return [*start, Segment(text, True), Segment(tokenizer.eos_token, True, markup=True)]
