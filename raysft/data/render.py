"""A conversation to text: a Jinja chat template gets it as transformers hands it over."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysft.data.turns import Conversation, Message, RecordError, spelt

Turn = dict[str, Any]
FUNCTIONS = "Functions that can be called:\n"  # before them, for a template that knows none
THOUGHT = "<think>\n{}\n</think>\n\n"  # before the words, for a template that knows no reasoning
# Noncharacters of Unicode around a special token that the data spells, while it is rendered.
SHIELD = re.compile("\ufdd0(.*?)\ufdd1", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Template:
    name: str
    source: str  # Jinja, as transformers reads it
    tokenizer: Any
    special: re.Pattern[str]  # finds the tokenizer's special tokens in a text
    end_token: str = ""  # what closes an assistant turn
    num_added: int = 0  # tokens that the tokenizer got for it
    tools_source: str = ""  # what renders conversations with tools, where that is another
    knows: frozenset[str] = frozenset()  # "tools", "tool_calls", "reasoning": has a form for them
    names: frozenset[str] = frozenset()  # all words in its source, fields that it reads among them

    @property
    def stop_ids(self) -> list[int]:
        """What ends an answer: the template's end of a turn, the tokenizer's end of a text."""
        end = self.tokenizer.convert_tokens_to_ids(self.end_token)
        return list(dict.fromkeys([int(end), int(self.tokenizer.eos_token_id)]))


def special_tokens(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    longest_first = sorted(special_tokens(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def render(
    template: Template,
    turns: Sequence[Turn],
    tools: list[Any] | None = None,
    *,
    answer_next: bool = False,
) -> str:
    """The text as transformers renders it. Raises RecordError where the template refuses."""
    from jinja2 import TemplateError

    try:
        return str(
            template.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=template.tools_source if tools else template.source,
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise RecordError(f"the template {template.name!r} refuses ({roles}): {error}") from None


def fitted(template: Template, conversation: Conversation) -> tuple[Conversation, list[Any] | None]:
    """Turns, and tools. What the template has no form for has become words, as in any text."""
    tools = None
    if conversation[0].role == "tools":
        given, *conversation = conversation
        if "tools" in template.knows and "tools" in given.fields:
            tools = given.fields["tools"]
        else:
            conversation = with_functions(conversation, given.content)
    return [fit(template, message) for message in conversation], tools


def with_functions(conversation: Conversation, functions: str) -> Conversation:
    """Functions become part of the system turn."""
    text = FUNCTIONS + functions
    first = conversation[0]
    if first.role != "system":
        return [Message("system", text), *conversation]
    return [first._replace(content=f"{first.content}\n\n{text}"), *conversation[1:]]


def fit(template: Template, message: Message) -> Message:
    content = message.content
    if message.calls and "tool_calls" not in template.knows:
        content = "\n".join(filter(None, [content, message.calls_text or spelt(message.calls)]))
        message = message._replace(content=content, calls=())
    if message.reasoning and "reasoning" not in template.knows:
        content = THOUGHT.format(message.reasoning.strip("\n")) + content
        message = message._replace(content=content, reasoning="")
    if message.fields:
        read = {name: v for name, v in message.fields.items() if name in template.names}
        message = message._replace(fields=read)
    return message


def as_turn(message: Message) -> Turn:
    """The dictionary that transformers takes."""
    turn: Turn = {"role": message.role, "content": message.content, **message.fields}
    if message.reasoning:  # gpt-oss reads the second name, all others the first
        turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.calls:
        turn["tool_calls"] = list(message.calls)
    return turn


def mapped(value: Any, change: Callable[[str], str], *, names: bool = False) -> Any:
    """A value of JSON with all its texts changed, or with the `names` of its fields as well."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(name) if names and isinstance(name, str) else name: mapped(
                item, change, names=names
            )
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mapped(item, change, names=names) for item in value]
    return value


def shielded(template: Template, value: Any) -> Any:
    """Turns or tools with every special token that they spell marked as text of theirs."""

    def shield(text: str) -> str:
        return template.special.sub(lambda found: f"\ufdd0{found[0]}\ufdd1", text)

    return mapped(value, shield, names=True)


def shown(text: str) -> str:
    return SHIELD.sub(r"\1", text)
