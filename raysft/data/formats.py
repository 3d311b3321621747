"""Raw record to conversations. A new format is one adapter and one entry in `FORMATS`."""

from collections.abc import Callable, Mapping
from typing import Any

from raysft.data.turns import (
    READ,
    Conversation,
    Message,
    NothingToLearn,
    Record,
    RecordError,
    calls_in,
    calls_of,
    functions,
    is_blank,
    is_trained,
    reasoning_of,
    spelt,
)

# The names of a turn's author in the data sets at hand, and the four roles templates know.
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "chatbot", "bot", "function_call", "tool_call"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}
CALLS = ("function_call", "tool_call")  # of these roles, whose words are calls in JSON
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


def text_of(record: Record, *names: str) -> str:
    """The first of the named fields. Raises RecordError when none is there or it is not text."""
    for name in names:
        if name in record:
            value = record[name]
            if not isinstance(value, str):
                raise RecordError(f"field {name!r} is {type(value).__name__}, not text")
            return value
    raise RecordError(
        f"no field {' or '.join(map(repr, names))}; its fields are {names_in(record)}"
    )


def optional_text(record: Record, name: str) -> str:
    """A field that may be absent, null or blank."""
    text = "" if record.get(name) is None else text_of(record, name)
    return text if text.strip() else ""


def list_of(record: Record, name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        raise RecordError(f"field {name!r} is {type(value).__name__}, not a list")
    return value


def names_in(record: Record) -> str:
    return ", ".join(map(repr, record)) or "none"


def system(record: Record) -> Conversation:
    """What comes before the turns: the functions of a `tools` field (or OpenAI's older
    `functions`), and a `system` text."""
    tools = functions(record.get("tools") or record.get("functions"))
    text = optional_text(record, "system")
    return [*([tools] if tools else []), *([Message("system", text)] if text else [])]


def with_system(record: Record, turns: Conversation) -> Conversation:
    """A `system` field and a first turn of that role make one system turn, not two."""
    before = system(record)
    if [m.role for m in (*before[-1:], *turns[:1])] == ["system", "system"]:
        joined = f"{before.pop().content}\n\n{turns[0].content}"
        turns = [turns[0]._replace(content=joined), *turns[1:]]
    return [*before, *turns]


def alpaca(record: Record) -> list[Conversation]:
    """`instruction`, an optional `input`, and `output` or `response`; `system` and `history`."""
    messages = system(record)
    for pair in record.get("history") or []:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        ):
            raise RecordError("field 'history' is not a list of [question, answer]")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    messages.append(Message("user", instruction_and_input(record, record)))
    return [[*messages, Message("assistant", text_of(record, "output", "response"))]]


def instruction_and_input(record: Record, instance: Record) -> str:
    given = optional_text(instance, "input")
    instruction = text_of(record, "instruction")
    return f"{instruction}\n{given}" if given else instruction


def self_instruct(record: Record) -> list[Conversation]:
    """`instruction` and `instances`, a list of {input, output}: a conversation for each."""
    conversations = []
    for instance in list_of(record, "instances"):
        if not isinstance(instance, Mapping):
            raise RecordError(f"an instance is {type(instance).__name__}, not an object")
        prompt = Message("user", instruction_and_input(record, instance))
        conversations.append([prompt, Message("assistant", text_of(instance, "output"))])
    return conversations


def prompt_completion(record: Record) -> list[Conversation]:
    """`prompt` and `completion`, or `question` and `answer`: texts, or both lists of turns."""
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        context = [m._replace(trained=False) for m in map(turn, list_of(record, "prompt"))]
        return [[*system(record), *context, *map(turn, list_of(record, "completion"))]]
    prompt = Message("user", text_of(record, "prompt", "question"))
    answer = Message("assistant", text_of(record, "completion", "answer"))
    return [[*system(record), prompt, answer]]


def messages(record: Record) -> list[Conversation]:
    """`messages`, a list of turns {role, content}."""
    return [with_system(record, list(map(turn, list_of(record, "messages"))))]


def sharegpt(record: Record) -> list[Conversation]:
    """`conversations`, a list of turns {from, value}."""
    return [with_system(record, list(map(turn, list_of(record, "conversations"))))]


def text(record: Record) -> list[Conversation]:
    """`text`: a document without turns, all of it trained."""
    return [[Message("text", text_of(record, "text"))]]


def turn(value: Any) -> Message:
    """{role, content} or {from, value}, and all else that a chat template may read of it.

    An assistant turn can keep itself out of the loss (`weight` 0; `loss`, `train` or `trainable`
    false). Its calls are those of `tool_calls`, of the older `function_call`, or of a ShareGPT turn
    of that name.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"a turn is {type(value).__name__}, not an object")
    author = text_of(value, "role", "from")
    if author not in ROLE_OF:
        raise RecordError(f"role {author!r} is none of {', '.join(ROLE_OF)}")
    role = ROLE_OF[author]
    content = value.get("content", value.get("value"))
    if isinstance(content, list):
        content = "".join(map(text_part, content))
    calls = calls_of(value) if role == "assistant" else ()
    if content is None and (calls or (role == "assistant" and reasoning_of(value))):
        content = ""
    if not isinstance(content, str):
        raise RecordError(f"the content of a {author} turn is {type(content).__name__}, not text")
    fields = {name: v for name, v in value.items() if name not in READ and v is not None}
    if role != "assistant":
        return Message(role, content, fields=fields)
    calls_text = spelt(calls)
    if author in CALLS and not calls and (calls := calls_in(content)):
        content, calls_text = "", content
    return Message(role, content, is_trained(value), reasoning_of(value), calls, calls_text, fields)


def text_part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        return text_of(part, "text")
    raise RecordError("a turn holds something other than text, such as an image")


Adapter = Callable[[Record], list[Conversation]]
FORMATS: dict[str, Adapter] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "self_instruct": self_instruct,
    "alpaca": alpaca,
    "prompt_completion": prompt_completion,
    "text": text,
}
# The fields that tell a format, in the order in which they are looked for.
TELLING_FIELDS = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "self_instruct": {"instances"},
    "alpaca": {"instruction"},
    "prompt_completion": {"prompt", "question"},
    "text": {"text"},
}
PREFERENCE = (
    "these are preference pairs (`chosen` and `rejected`), which reward models and DPO learn from; "
    "supervised fine-tuning takes one response a record. To train on the preferred ones, write "
    "records with `chosen` as the response, or, where it is text, set "
    'data.fields.completion = "chosen"'
)


def detect_format(record: Record) -> str:
    """The name of the format whose prompt this record has. Raises RecordError when it has none."""
    if {"chosen", "rejected"} <= record.keys():
        raise RecordError(PREFERENCE)
    for name, fields in TELLING_FIELDS.items():
        if fields & record.keys():
            return name
    raise RecordError(
        f"no known format: its fields are {names_in(record)}. Known are messages, conversations, "
        "instruction/input/output (or response), instruction/instances, prompt/completion, "
        "question/answer and text. Other names can be mapped: data.fields.instruction = NAME"
    )


def renamed(record: Any, fields: Mapping[str, str]) -> Record:
    """The record under the names its format knows; `fields` maps such a name to the record's.

    Raises RecordError when it is no object.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"a record is a JSON object, but this is {type(record).__name__}")
    if not fields:
        return record
    taken = set(fields.values())
    result = {name: value for name, value in record.items() if name not in taken}
    return result | {known: record[name] for known, name in fields.items() if name in record}


def to_conversations(record: Record, adapter: Adapter) -> list[Conversation]:
    """Raises RecordError: a field is missing or wrong. Raises NothingToLearn."""
    conversations = adapter(record)
    for conversation in conversations:
        trained = [m for m in conversation if m.role in ("assistant", "text") and m.trained]
        if not trained:
            raise NothingToLearn("no answer to train on")
        if all(map(is_blank, trained)):
            raise NothingToLearn("the response is empty")
    if not conversations:
        raise RecordError("field 'instances' is empty")
    return [[not_to_end_at_once(m) for m in conversation] for conversation in conversations]


def not_to_end_at_once(message: Message) -> Message:
    """An empty answer among others is not trained: it would teach an immediate end."""
    if message.role == "assistant" and is_blank(message):
        return message._replace(trained=False)
    return message
