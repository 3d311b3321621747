"""What a chat template has a form for, seen by what it renders."""

from typing import Any

from raysft.data.layout import mark
from raysft.data.render import Template, Turn, render
from raysft.data.turns import RecordError

ASKED: Turn = {"role": "user", "content": "q"}
TOOL = {
    "type": "function",
    "function": {
        "name": mark(0),
        "description": "d",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
THOUGHT: Turn = {
    "role": "assistant", "content": "a", "reasoning_content": mark(2), "thinking": mark(2),
}  # fmt: skip
CALL: Turn = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "call00000",  # Mistral's templates want nine characters
            "function": {"name": mark(1), "arguments": {"x": "y"}},
        }
    ],
}
# Form, what is rendered, and the mark that is looked for.
PROBES: tuple[tuple[str, list[Turn], list[Any] | None, str], ...] = (
    ("tools", [ASKED], [TOOL], mark(0)),
    ("tool_calls", [ASKED, CALL], [TOOL], mark(1)),
    ("reasoning", [ASKED, THOUGHT], None, mark(2)),
    ("reasoning", [ASKED, THOUGHT | CALL], [TOOL], mark(2)),  # Gemma 4: beside calls only
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
