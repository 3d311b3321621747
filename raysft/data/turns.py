"""One turn of a conversation: its words, and what else a chat template gets of it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]
# The names that a thought before the words goes by, as transformers takes them.
REASONING = ("reasoning_content", "thinking", "reasoning")
# What says in the data sets of several trainers whether a turn is trained, and how it is spelt.
TRAINED = ("weight", "loss", "train", "training", "trainable", "train_on")
SAYS_TRAINED = dict.fromkeys(("1", "1.0", "true"), True) | dict.fromkeys(
    ("0", "0.0", "false"), False
)
# Fields of a turn that are read here; a template gets all others as they are.
READ = {
    "role",
    "from",
    "content",
    "value",
    "text",
    "tool_calls",
    "function_call",
    *REASONING,
    *TRAINED,
}
NO_LIST = ("", "null", "[]")  # what a text of no tools says


class Message(NamedTuple):
    # "system", "user", "assistant", "tool"; "tools": functions that can be called, of the whole
    # conversation and before its turns; "text": a document without turns
    role: str
    content: str
    trained: bool = True  # false: an assistant turn that is only context
    reasoning: str = ""  # the thought before the words
    calls: tuple[dict[str, Any], ...] = ()  # of functions, as transformers takes `tool_calls`
    calls_text: str = ""  # the same for a template that knows no calls
    fields: Mapping[str, Any] = {}  # all else that a template may read


Conversation = list[Message]


class RecordError(ValueError):
    """One record is not what its format asks for; says which field and why.

    `reason` is what such records are counted as; `detail` is of the one record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason = reason


class NothingToLearn(RecordError):
    """A sound record without an answer to train on: it is left out and counted, never an error."""


def is_trained(turn: Record) -> bool:
    """What the turn says of itself. Raises RecordError where it says neither yes nor no."""
    for name in TRAINED:
        if turn.get(name) is None:
            continue
        said = SAYS_TRAINED.get(str(turn[name]).strip().lower())
        if said is None:
            raise RecordError(
                f"field {name!r} of a turn tells whether it is trained, and is neither 0 nor 1; "
                "rename it if it means something else",
                f" (it is {turn[name]!r})",
            )
        if not said:
            return False
    return True


def reasoning_of(turn: Record) -> str:
    for name in REASONING:
        value = turn.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise RecordError(f"field {name!r} of a turn is {type(value).__name__}, not text")
            return value if value.strip() else ""
    return ""


def calls_of(turn: Record) -> tuple[dict[str, Any], ...]:
    """`tool_calls`, or the one legacy `function_call`, as OpenAI writes them."""
    calls = json_list(turn.get("tool_calls"), "tool_calls")
    if not calls and turn.get("function_call"):
        calls = [turn["function_call"]]
    return tuple(map(call_of, calls))


def call_of(value: Any) -> dict[str, Any]:
    """{"type", "function": {"name", "arguments"}}, with arguments that were JSON in a string."""
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping):
        raise RecordError("an entry of 'tool_calls' is not an object")
    if not isinstance(inner.get("name"), str):
        raise RecordError("a function call has no field 'name'")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError:
            raise RecordError("the arguments of a function call are not valid JSON") from None
    function = {"name": inner["name"], "arguments": {} if arguments is None else arguments}
    outer = value if inner is not value else {}
    return {"type": "function", **outer, "function": function}


def calls_in(text: str) -> tuple[dict[str, Any], ...]:
    """The calls that a ShareGPT `function_call` turn spells as JSON; none where it is no such."""
    try:
        value = json.loads(text)
        return tuple(map(call_of, value if isinstance(value, list) else [value]))
    except (ValueError, RecursionError):
        return ()


def spelt(calls: tuple[dict[str, Any], ...]) -> str:
    """One JSON object a line, as a model writes calls whose template has no form for them."""
    return "\n".join(
        json.dumps(call["function"], ensure_ascii=False, default=str) for call in calls
    )


def json_list(value: Any, name: str) -> list[Any]:
    """A list, or a text that is one in JSON. Raises RecordError for anything else."""
    if isinstance(value, str):
        if "".join(value.split()) in NO_LIST:
            return []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError(f"field {name!r} is a text that is not JSON") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"field {name!r} is {type(value).__name__}, not a list")
    return value


def functions(value: Any) -> Message | None:
    """The `tools` of a record as its first turn, or none.

    A text that is no list in JSON describes them in words, and so does a list of such texts.
    """
    try:
        listed = [json_text(tool) for tool in json_list(value, "tools")]
    except RecordError:
        if not isinstance(value, str):
            raise
        return Message("tools", value)
    if not listed:
        return None
    text = value if isinstance(value, str) else json.dumps(listed, ensure_ascii=False, default=str)
    if not all(isinstance(tool, Mapping) for tool in listed):
        return Message("tools", text)
    tools = [t if "function" in t or "name" not in t else wrapped(t) for t in listed]
    return Message("tools", text, fields={"tools": tools})


def json_text(tool: Any) -> Any:
    try:
        return json.loads(tool) if isinstance(tool, str) else tool
    except (ValueError, RecursionError):
        return tool


def wrapped(function: Record) -> dict[str, Any]:
    """As servers hand it to a template, whichever way it came to them."""
    return {"type": "function", "function": dict(function)}


def is_blank(message: Message) -> bool:
    return not (message.content.strip() or message.reasoning or message.calls)


def strings_in(value: Any) -> list[str]:
    """All texts in a value of JSON, the names of its fields among them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    return [s for v in value for s in strings_in(v)] if isinstance(value, list | tuple) else []


def texts_of(message: Message) -> list[str]:
    """All that a template may write of it."""
    if not (message.reasoning or message.calls or message.fields):
        return [message.content]
    return [
        message.content,
        message.reasoning,
        *strings_in(message.calls),
        *strings_in(message.fields),
    ]
