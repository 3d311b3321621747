"""Raw record to conversations. A new format is one adapter and one entry in `FORMATS`."""

from collections.abc import Callable, Mapping
from typing import Any

from raysft.data import shapes
from raysft.data.shapes import (
    answer_of,
    choices_of,
    from_json,
    list_of,
    names_in,
    optional_text,
    text_of,
    with_choices,
)
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

PROMPT, COMPLETION = shapes.PROMPT, shapes.COMPLETION

# The names of a turn's author in the data sets at hand, and the four roles templates know.
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": (
        *("assistant", "gpt", "model", "chatbot", "bot", "ai", "chatgpt", "bing", "bard", "claude"),
        *("function_call", "tool_call"),
    ),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}
CALLS = ("function_call", "tool_call")  # of these roles, whose words are calls in JSON
TEXT_PARTS = ("text", "input_text", "output_text")  # the last two are of OpenAI's Responses API
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


def system(record: Record) -> Conversation:
    """What comes before the turns: the functions of a `tools` field (or OpenAI's older
    `functions`), and a `system` text."""
    tools = functions(record.get("tools") or record.get("functions"))
    text = optional_text(record, *shapes.SYSTEM)
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
    question = with_choices(instruction_and_input(record, record), choices_of(record))
    answer = answer_of(record, shapes.OUTPUT)
    asked = [*system(record), *history(record), Message("user", question)]
    return [[*asked, Message("assistant", answer)]]


def history(record: Record) -> Conversation:
    """The earlier turns of an Alpaca record. Raises RecordError."""
    turns = []
    for pair in from_json(record.get("history")) or []:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        ):
            raise RecordError("field 'history' is not a list of [question, answer]")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns


def instruction_and_input(record: Record, instance: Record) -> str:
    given = optional_text(instance, *shapes.INPUT)
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
    """`prompt` and `completion`, under one of their names: texts, or both lists of turns.

    Of texts, the prompt takes up a `context` before the question and `choices` after it. Raises
    NothingToLearn for an answer that is labelled as a bad one, as in the records of KTO.
    """
    if record.get("label") is False:
        raise NothingToLearn("its answer is a bad one (label = false)")
    names = [shapes.chosen(record, group) or group[0] for group in (PROMPT, COMPLETION)]
    if all(isinstance(record.get(name), list) for name in names) and record[names[0]]:
        earlier, answers = (list(map(turn, list_of(record, name))) for name in names)
        return [[*system(record), *(m._replace(trained=False) for m in earlier), *answers]]
    context = optional_text(record, *shapes.CONTEXT)
    question = with_choices(text_of(record, *PROMPT), choices_of(record))
    prompt = Message("user", f"{context}\n{question}" if context else question)
    return [[*system(record), prompt, Message("assistant", answer_of(record, COMPLETION))]]


def messages(record: Record) -> list[Conversation]:
    """`messages`, a list of turns {role, content}; or UltraChat's, whose roles alternate."""
    turns = list_of(record, *shapes.MESSAGES)
    if alternates(record):
        turns = [
            {"role": ("user", "assistant")[index % 2], "content": words}
            for index, words in enumerate(turns)
        ]
    return [with_system(record, list(map(turn, turns)))]


def alternates(record: Record) -> bool:
    """Whether it is one of UltraChat: `data`, a list of texts from user and assistant in turn."""
    values = from_json(record.get("data"))
    is_read = shapes.chosen(record, shapes.MESSAGES) == "data"
    return is_read and isinstance(values, list) and all(isinstance(v, str) for v in values)


def sharegpt(record: Record) -> list[Conversation]:
    """`conversations`, a list of turns {from, value}."""
    return [with_system(record, list(map(turn, list_of(record, "conversations"))))]


def text(record: Record) -> list[Conversation]:
    """`text`: a document without turns, all of it trained."""
    return [[Message("text", text_of(record, "text"))]]


def turn(value: Any) -> Message:
    """{role, content}, {from, value} or {role, text}, and all else that a template may read of it.

    An assistant turn can keep itself out of the loss (`weight` 0; `loss`, `train` or `trainable`
    false). Its calls are those of `tool_calls`, of the older `function_call`, or of a ShareGPT turn
    of that name.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"a turn is {type(value).__name__}, not an object")
    author = text_of(value, "role", "from").strip().lower()
    if author not in ROLE_OF:
        raise RecordError(f"role {author!r} is none of {', '.join(ROLE_OF)}")
    role = ROLE_OF[author]
    content = value.get(shapes.chosen(value, ("content", "value", "text")) or "")
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
    if isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS:
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
    "prompt_completion": {*PROMPT},
    "text": {"text"},
}
PAIRS = ("preference", "labelled")  # formats of pairs: see pairs.py


def detect_format(record: Record) -> str:
    """The name of the format whose prompt this record has. Raises RecordError when it has none."""
    there = {name for name, value in record.items() if value is not None}
    if all(set(names) & there for names in (shapes.CHOSEN, shapes.REJECTED)):
        return "preference"
    for name, fields in TELLING_FIELDS.items():
        if fields & there:
            return name
    if alternates(record) or isinstance(from_json(record.get("conversation")), list):
        return "messages"
    nested = [name for name in there if is_list_of_objects(record[name])]
    hint = (
        f" Its field {nested[0]!r} may hold the records: write that list alone." if nested else ""
    )
    raise RecordError(
        f"no known format: its fields are {names_in(record)}. Known are messages, conversations, "
        "instruction/input/output (or context, response), instruction/instances, prompt/completion "
        "(or question, query, input with answer, response, output) and text. Other names can be "
        f"mapped: data.fields.instruction = NAME.{hint}"
    )


def is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


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


def found_in(record: Any, fields: Mapping[str, str]) -> list[str]:
    """The names of `fields` whose field the record has."""
    if not isinstance(record, Mapping):
        return []
    return [known for known, name in fields.items() if name in record]


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
