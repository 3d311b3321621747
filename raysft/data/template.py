"""Messages to text segments, each either prompt or supervised, by a Jinja chat template.

Whatever the template does between the words, its spans are found and not guessed: the template is
rendered once for each sequence of roles with marks in place of the words, and once for each record
with the words, and both must agree.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from raysft.config.load import did_you_mean
from raysft.data.formats import Conversation, Message, RecordError
from raysft.errors import UserError

BUILT_IN = ("plain", "alpaca", "chatml")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# What stands for a message's words while a layout is made: private-use characters around its
# index, between spaces of a kind that only a template's own trimming would remove.
SPACE = "\u2003"
MARK = re.compile(f"({SPACE}?)\ue000(\\d+)\ue001({SPACE}?)")


class Segment(NamedTuple):
    text: str
    supervised: bool
    markup: bool = False  # written by the template: a special token in it is meant


class Piece(NamedTuple):
    """A part of a layout: markup, or the place of a message's words."""

    text: str  # of markup
    message: int | None  # whose words go here
    answer: int | None  # the assistant turn that this is generated with, if any
    trim: tuple[bool, bool] = (False, False)  # whether the template strips the words' two ends


@dataclass(frozen=True, eq=False)
class Template:
    name: str
    source: str  # Jinja, as transformers reads it
    tokenizer: Any
    special: re.Pattern[str]  # finds the tokenizer's special tokens in a text
    end_token: str = ""  # what closes an assistant turn
    num_added: int = 0  # tokens that the tokenizer got for it

    @property
    def stop_ids(self) -> list[int]:
        """What ends an answer: the template's end of a turn, the tokenizer's end of a text."""
        end = self.tokenizer.convert_tokens_to_ids(self.end_token)
        return list(dict.fromkeys([int(end), int(self.tokenizer.eos_token_id)]))


def install_template(tokenizer: Any, name: str) -> Template:
    """Make `name` the chat template of the tokenizer, which saves it with the model.

    `name` is "auto" (the tokenizer's own, or else "plain"), "tokenizer", a built-in template or a
    Jinja file. "chatml" adds its two special tokens where the tokenizer has none.

    Raises UserError: no such template, one that does not render a question and its answer, or one
    whose answers end in no special token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"model.tokenizer: {tokenizer.name_or_path} has no tokenizer.json; convert it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of a library that has"
        )
    own = tokenizer.chat_template
    if name == "auto":
        name = "tokenizer" if own else "plain"
    if name == "tokenizer":
        if not own:
            raise UserError(
                f"data.template: the tokenizer {tokenizer.name_or_path} has no chat template of "
                f"its own; take one of {', '.join(BUILT_IN)} or a Jinja file"
            )
        source = tokenizer.get_chat_template()
    else:
        source = read_template(name)
        if name in BUILT_IN and adds_bos(tokenizer):
            source = "{{ bos_token }}" + source
    before = len(tokenizer)
    if name == "chatml":
        missing = [t for t in CHATML_TOKENS if t not in special_tokens(tokenizer)]
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    if tokenizer.eos_token is None:
        raise UserError(
            f"model.tokenizer: {tokenizer.name_or_path} has no end token (eos_token), which every "
            "response must end with. Set eos_token in its tokenizer_config.json."
        )
    tokenizer.chat_template = source
    template = Template(name, source, tokenizer, special_pattern(tokenizer))
    added = len(tokenizer) - before
    return replace(template, end_token=find_end_token(template), num_added=added)


def find_end_token(template: Template) -> str:
    """What the template closes an answer with. Raises UserError as `install_template` does."""
    name = template.name
    try:
        pieces = layout(template, ("user", "assistant"))
    except RecordError as error:
        raise UserError(f"data.template: {name} renders no question and answer: {error}") from None
    last = [piece for piece in pieces if piece.answer is not None][-1]
    ends = template.special.findall(last.text)
    if not ends:
        raise UserError(
            f"data.template: {name} ends an answer without a special token, so that a model could "
            "not learn to stop. Put {{ eos_token }} after the assistant's content."
        )
    return str(ends[-1])


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


def special_tokens(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    longest_first = sorted(special_tokens(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def to_segments(
    conversation: Conversation, template: Template, *, last_turn_only: bool = False
) -> list[Segment]:
    """Prompt and supervised segments; every trained assistant turn ends in its end token.

    Raises RecordError where the template refuses the conversation, leaves out some of it, or
    writes a message's words otherwise than they are.
    """
    if conversation[0].role == "text":
        return document(conversation[0].content, template)
    pieces = layout(template, tuple(message.role for message in conversation))
    filled = fill(pieces, conversation)
    if "".join(filled) != render(template, conversation):
        raise RecordError(
            f"the template {template.name!r} rewrites the words of this record, so its supervised "
            "tokens cannot be told exactly"
        )
    trained = {
        index
        for index, message in enumerate(conversation)
        if message.role == "assistant" and message.trained
    }
    if last_turn_only:
        trained = {max(trained)} if trained else set()
    return [
        Segment(text, piece.answer in trained, markup=piece.message is None)
        for text, piece in zip(filled, pieces, strict=True)
        if text
    ]


def prompt_segments(conversation: Conversation, template: Template) -> list[Segment]:
    """What to generate the next assistant turn from: the same text as in training before it."""
    pieces = cut_at_marks(marked(template, [m.role for m in conversation], answer_next=True))
    filled = fill(pieces, conversation)
    return [
        Segment(text, supervised=False, markup=piece.message is None)
        for text, piece in zip(filled, pieces, strict=True)
        if text
    ]


def document(text: str, template: Template) -> list[Segment]:
    """A text without turns: all of it is supervised, whatever the template."""
    tokenizer = template.tokenizer
    start = [Segment(tokenizer.bos_token, False, markup=True)] if adds_bos(tokenizer) else []
    return [*start, Segment(text, True), Segment(tokenizer.eos_token, True, markup=True)]


def render(template: Template, conversation: Conversation, *, answer_next: bool = False) -> str:
    from jinja2 import TemplateError

    turns = [{"role": message.role, "content": message.content} for message in conversation]
    try:
        return str(
            template.tokenizer.apply_chat_template(
                turns,
                chat_template=template.source,
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in conversation)
        raise RecordError(f"the template {template.name!r} refuses ({roles}): {error}") from None


@lru_cache(maxsize=4096)
def layout(template: Template, roles: tuple[str, ...]) -> tuple[Piece, ...]:
    """The pieces of every conversation with these roles.

    An answer reaches from the end of the prompt that would be generated from (so words that the
    template puts before the answer are learnt, as they must be generated) to the first special
    token after its words.
    """
    full = marked(template, roles)
    places = {int(mark[2]): mark.span() for mark in MARK.finditer(full)}
    for index, role in enumerate(roles):
        if index not in places:
            raise RecordError(f"the template {template.name!r} leaves out {role} turns")
    borders: dict[int, tuple[int, int]] = {}  # assistant turn -> where its answer begins and ends
    for index, role in enumerate(roles):
        if role != "assistant":
            continue
        prompt = marked(template, roles[:index], answer_next=True) if index else ""
        if not full.startswith(prompt):
            raise RecordError(
                f"the template {template.name!r} writes turn {index + 1} after another prompt than "
                "it would be generated from"
            )
        begin = len(prompt) if index else places[index][0]
        alone = marked(template, roles[: index + 1])
        limit = len(alone) if full.startswith(alone) else len(full)
        end = template.special.search(full, places[index][1], limit)
        borders[index] = (begin, end.end() if end else places[index][1])
    return tuple(cut_at_marks(full, borders))


def marked(
    template: Template, roles: tuple[str, ...] | list[str], answer_next: bool = False
) -> str:
    words = [f"{SPACE}\ue000{index}\ue001{SPACE}" for index in range(len(roles))]
    conversation = [Message(role, text) for role, text in zip(roles, words, strict=True)]
    return render(template, conversation, answer_next=answer_next)


def cut_at_marks(text: str, borders: dict[int, tuple[int, int]] | None = None) -> list[Piece]:
    """Split at the marks and at the borders of the answers."""
    borders = borders or {}
    marks = {mark.start(): mark for mark in MARK.finditer(text)}
    cuts = {0, len(text), *(place for span in borders.values() for place in span)}
    cuts |= {place for mark in marks.values() for place in mark.span()}
    ordered = sorted(cuts)
    pieces = []
    for begin, end in pairwise(ordered):
        answer = next((i for i, span in borders.items() if span[0] <= begin < span[1]), None)
        if mark := marks.get(begin):
            pieces.append(Piece("", int(mark[2]), answer, (not mark[1], not mark[3])))
        else:
            pieces.append(Piece(text[begin:end], None, answer))
    return pieces


def fill(pieces: list[Piece] | tuple[Piece, ...], conversation: Conversation) -> list[str]:
    """The text of each piece."""
    texts = []
    for piece in pieces:
        text = piece.text if piece.message is None else conversation[piece.message].content
        text = text.lstrip() if piece.trim[0] else text
        texts.append(text.rstrip() if piece.trim[1] else text)
    return texts
