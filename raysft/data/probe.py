"""What a chat template has a form for, seen by what it renders."""

from functools import lru_cache
from typing import Any

from raysft.data.layout import MARK, mark
from raysft.data.render import Template, Turn, render
from raysft.data.turns import RecordError

OF_TOOL, OF_CALL, OF_THOUGHT = map(mark, (10**6, 10**6 + 1, 10**6 + 2))
ASKED: Turn = {"role": "user", "content": "q"}
TOOL = {
    "type": "function",
    "function": {
        "name": OF_TOOL,
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
THOUGHT: Turn = {
    "role": "assistant", "content": "a", "reasoning_content": OF_THOUGHT, "thinking": OF_THOUGHT,
}  # fmt: skip
CALLS = [
    {
        "type": "function",
        "id": "call00000",  # Mistral's templates want nine characters
        "function": {"name": OF_CALL, "arguments": {"x": "y"}},
    }
]
CALL: Turn = {"role": "assistant", "content": "", "tool_calls": CALLS}
# Form, what is rendered, and the mark that is looked for.
PROBES: tuple[tuple[str, list[Turn], list[Any] | None, str], ...] = (
    ("tools", [ASKED], [TOOL], OF_TOOL),
    ("tool_calls", [ASKED, CALL], [TOOL], OF_CALL),
    ("reasoning", [ASKED, THOUGHT], None, OF_THOUGHT),
    ("reasoning", [ASKED, THOUGHT | CALL], [TOOL], OF_THOUGHT),  # Gemma 4: beside calls only
)


def known_forms(template: Template) -> frozenset[str]:
    return frozenset(
        name
        for name, turns, tools, looked_for in PROBES
        if writes_mark(template, turns, tools, looked_for)
    )


def writes_mark(
    template: Template, turns: list[Turn], tools: list[Any] | None, looked_for: str
) -> bool:
    try:
        text = render(template, turns, tools, answer_next=turns[-1]["role"] == "user")
    except RecordError:
        return False
    return looked_for.strip() in text


def takes_turns(template: Template) -> bool:
    """Whether it writes what was said before the last question."""
    turns: list[Turn] = [
        {"role": role, "content": mark(index)}
        for index, role in enumerate(("user", "assistant", "user"))
    ]
    return all(writes_mark(template, turns, None, turn["content"]) for turn in turns)


@lru_cache(maxsize=4096)
def turns_left_out(
    template: Template, kinds: tuple[tuple[str, bool], ...], has_tools: bool
) -> frozenset[int]:
    """Of conversations of such turns: their role, and whether they call functions."""
    turns: list[Turn] = [
        {"role": role, "content": mark(index)} | ({"tool_calls": CALLS} if calls else {})
        for index, (role, calls) in enumerate(kinds)
    ]
    try:
        text = render(template, turns, [TOOL] if has_tools else None)
    except RecordError:  # it expects words of some kind
        return frozenset()
    seen = {int(found[2]) for found in MARK.finditer(text)}
    return frozenset(range(len(kinds))) - seen
