"""Raw record to messages. A new format is one adapter and one entry in `FORMATS`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Message(NamedTuple):
    role: str  # "user" or "assistant"
    content: str


class RecordError(ValueError):
    """One record is not what its format asks for; says which field and why."""


def text_of(record: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields. Raises RecordError when none is there or it is not text."""
    for name in names:
        if name in record:
            value = record[name]
            if not isinstance(value, str):
                raise RecordError(f"field {name!r} is {type(value).__name__}, not text")
            return value
    found = ", ".join(map(repr, record)) or "none"
    raise RecordError(f"no field {' or '.join(map(repr, names))}; its fields are {found}")


def alpaca(record: Mapping[str, Any]) -> list[Message]:
    """`instruction`, an optional `input`, and `output` or `response`."""
    instruction = text_of(record, "instruction")
    has_input = record.get("input") is not None
    given = text_of(record, "input") if has_input else ""
    prompt = f"{instruction}\n{given}" if given.strip() else instruction
    return [Message("user", prompt), Message("assistant", text_of(record, "output", "response"))]


def prompt_completion(record: Mapping[str, Any]) -> list[Message]:
    """`prompt` and `completion`, or `question` and `answer`."""
    prompt = text_of(record, "prompt", "question")
    return [Message("user", prompt), Message("assistant", text_of(record, "completion", "answer"))]


Adapter = Callable[[Mapping[str, Any]], list[Message]]
FORMATS: dict[str, Adapter] = {"alpaca": alpaca, "prompt_completion": prompt_completion}
# The fields that tell a format, so that whatever else is wrong is told by its adapter.
TELLING_FIELDS = {"alpaca": {"instruction"}, "prompt_completion": {"prompt", "question"}}


def detect_format(record: Mapping[str, Any]) -> str:
    """The name of the format whose prompt this record has. Raises RecordError when it has none."""
    for name, fields in TELLING_FIELDS.items():
        if fields & record.keys():
            return name
    found = ", ".join(map(repr, record)) or "none"
    raise RecordError(
        f"no known format: its fields are {found}. Known are instruction/input/output (or "
        "response), prompt/completion and question/answer"
    )


def to_messages(record: Any, adapter: Adapter) -> list[Message]:
    """Raises RecordError."""
    if not isinstance(record, Mapping):
        raise RecordError(f"a record is a JSON object, but this is {type(record).__name__}")
    messages = adapter(record)
    if not messages[-1].content.strip():
        raise RecordError("the response is empty")
    return messages
