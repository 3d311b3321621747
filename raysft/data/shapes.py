"""Where a raw record has what: the names that fields go by, and the values behind them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raysft.data.turns import NothingToLearn, Record, RecordError

Names = tuple[str, ...]


class Unreadable(NamedTuple):
    """Stands for a value that could not be converted, which matters only to who reads it."""

    problem: str


# The names that a part of a record goes by in the data sets at hand, in the order in which they
# are looked for. One of them is read; another one with text is told as not read.
SYSTEM = ("system", "system_prompt")  # OpenOrca has the second
TOOLS = ("tools", "functions")
MESSAGES = ("messages", "conversation", "data")  # LMSYS has the second, UltraChat the third
CONVERSATIONS = ("conversations",)
INSTRUCTION = ("instruction",)
INPUT = ("input", "context")  # Dolly has the second
OUTPUT = ("output", "response", "answer", "completion")
HISTORY = ("history",)
INSTANCES = ("instances",)
PROMPT = ("prompt", "question", "query", "question_stem", "input")
CONTEXT = ("context",)  # SQuAD
CHOICES = ("choices", "options")
COMPLETION = ("completion", "answer", "response", "output", "answers", "answerKey")
TEXT = ("text",)
CHOSEN, REJECTED = ("chosen",), ("rejected",)
# What judges gave the two answers; UltraFeedback has the first, Argilla's sets the last.
SCORES = (
    ("score_chosen", "chosen_score", "chosen-rating"),
    ("score_rejected", "rejected_score", "rejected-rating"),
)
MARGIN = ("margin",)

# What each format reads, besides the choices of a question.
READ: dict[str, tuple[Names, ...]] = {
    "messages": (MESSAGES, SYSTEM, TOOLS),
    "sharegpt": (CONVERSATIONS, SYSTEM, TOOLS),
    "self_instruct": (INSTRUCTION, INSTANCES),
    "alpaca": (INSTRUCTION, INPUT, OUTPUT, HISTORY, SYSTEM, TOOLS),
    "prompt_completion": (PROMPT, CONTEXT, COMPLETION, SYSTEM, TOOLS),
    "text": (TEXT,),
    "preference": (
        *(CONVERSATIONS, INSTRUCTION, INPUT, HISTORY, PROMPT, SYSTEM, TOOLS),
        *(CHOSEN, REJECTED, *SCORES, MARGIN),
    ),
    "labelled": (PROMPT, CONTEXT, COMPLETION, SYSTEM, TOOLS, CHOSEN, REJECTED),
}
WITH_CHOICES = ("alpaca", "prompt_completion")


def chosen(record: Record, names: Sequence[str]) -> str | None:
    """The first of the names that the record has something under, or else that it has at all."""
    blank = None
    for name in names:
        if name in record:
            if not is_blank(record[name]):
                return name
            blank = name if blank is None else blank
    return blank


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(record: Record, *names: str) -> str:
    """The first of the named fields. Raises RecordError when none is there or it is not text."""
    name = required(record, names)
    value = record[name]
    if not isinstance(value, str):
        raise RecordError(f"field {name!r} is {kind_of(value)}, not text")
    return value


def required(record: Record, names: Sequence[str]) -> str:
    """As `chosen`. Raises RecordError when there is none, or when it could not be converted."""
    name = chosen(record, names)
    if name is None:
        known = " or ".join(map(repr, names))
        raise RecordError(f"no field {known}; its fields are {names_in(record)}")
    if isinstance(record[name], Unreadable):
        raise RecordError(f"field {name!r} {record[name].problem}")
    return name


def kind_of(value: Any) -> str:
    return type(value).__name__


def optional_text(record: Record, *names: str) -> str:
    """A field that may be absent, null or blank."""
    name = chosen(record, names)
    text = "" if name is None or record[name] is None else text_of(record, name)
    return text if text.strip() else ""


def list_of(record: Record, *names: str) -> list[Any]:
    """The list in the first of the named fields, which may be spelled as JSON in a text.

    Raises RecordError when it is something else.
    """
    name = required(record, names)
    value = from_json(record.get(name))
    if not isinstance(value, list):
        raise RecordError(f"field {name!r} is {kind_of(record.get(name))}, not a list")
    return value


def from_json(value: Any) -> Any:
    """What a text spells as JSON, where that is a list or an object; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def names_in(record: Record) -> str:
    shown = [repr(name) for name in record]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return (", ".join(shown[:20]) or "none") + more


class Choice(NamedTuple):
    label: str
    text: str


def choices_of(record: Record) -> list[Choice]:
    """The choices of a question; empty where it has none.

    They are a list of texts, {"text": [...], "label": [...]} as ARC has it, or {"A": text, ...}.
    """
    name = chosen(record, CHOICES)
    if name is None:
        return []
    value = from_json(record[name])
    labels: Any = None
    if isinstance(value, Mapping) and "text" in value:
        value, labels = value["text"], value.get("label")
    elif isinstance(value, Mapping) and all(len(str(key)) == 1 for key in value):
        value, labels = list(value.values()), list(value)
    if not isinstance(value, list) or not all(isinstance(v, str | int | float) for v in value):
        return []
    if not isinstance(labels, list) or len(labels) != len(value):
        labels = [chr(ord("A") + index) for index in range(len(value))]
    return [Choice(str(label), str(text)) for label, text in zip(labels, value, strict=True)]


def with_choices(question: str, choices: Sequence[Choice]) -> str:
    """The question and, on lines of their own, its choices: "A. the first"."""
    return "\n".join([question, *(f"{label}. {text}" for label, text in choices)])


def answer_of(record: Record, names: Names) -> str:
    """The answer as text; of a multiple-choice question the choice that is meant.

    A number stands as JSON spells it. Of a list of answers, or SQuAD's {"text": [...]}, the first
    is taken. Raises RecordError when it is something else, NothingToLearn when the list is empty.
    """
    name = required(record, names)
    choices = choices_of(record)
    value = record[name]
    if choices and not is_blank(value):
        return choice_meant(name, value, choices)
    return answer_text(name, value)


def answer_text(name: str, value: Any) -> str:
    inner = value
    while True:
        if isinstance(inner, Mapping) and "text" in inner:
            inner = inner["text"]
        elif isinstance(inner, list) and not inner:
            raise NothingToLearn("no answer to train on")
        elif isinstance(inner, list) and not isinstance(inner[0], list):
            inner = inner[0]
        else:
            break
    if is_number(inner):
        return json.dumps(inner)
    if not isinstance(inner, str):
        raise RecordError(f"field {name!r} is {kind_of(value)}, not text")
    return inner


def is_number(value: Any) -> bool:
    """Not of NaN, which stands for a number that is missing, nor of true and false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choice_meant(name: str, value: Any, choices: Sequence[Choice]) -> str:
    """By an index from 0, a label such as "B", or its text; any other text stays as it is.

    Raises RecordError when a number is no index.
    """
    texts = [choice.text for choice in choices]
    labels = [choice.label.upper() for choice in choices]
    answer = answer_text(name, value)
    label = answer.strip().strip("().").upper()
    index: int | None = None
    if is_number(value):
        index = int(value) if 0 <= value < len(choices) and value == int(value) else None
        if index is None:
            raise RecordError(f"field {name!r} is {value}, but there are {len(choices)} choices")
    elif answer in texts:
        index = texts.index(answer)
    elif label in labels:
        index = labels.index(label)
    elif label.isascii() and label.isdigit() and int(label) < len(choices):
        index = int(label)
    return answer if index is None else f"{choices[index].label}. {choices[index].text}"


def read_fields(record: Record, format_name: str) -> Iterator[str]:
    """The fields of a record that its format reads."""
    of_questions = format_name in WITH_CHOICES
    turns = of_questions and isinstance(record.get(chosen(record, PROMPT) or ""), list)
    for names in READ[format_name]:
        name = chosen(record, names)
        if name is not None and not (turns and names is CONTEXT):
            yield name
    if of_questions and not turns and choices_of(record):
        yield chosen(record, CHOICES) or ""


def unread_fields(record: Record, known: Record, fields: Mapping[str, str], name: str) -> set[str]:
    """The fields with text that the format `name` leaves out.

    `known` is the record under the names that its format knows, `fields` the mapping to them.
    """
    read = {fields.get(field, field) for field in read_fields(known, name)}
    return {field for field in record if field not in read and has_text(record[field])}


def has_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(map(has_text, value.values()))
    return isinstance(value, list) and any(map(has_text, value))
