"""Messages to text segments, each either prompt or supervised. A template is one function."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from raysft.data.formats import Message


class Segment(NamedTuple):
    text: str
    supervised: bool  # a response: the tokenizer's end token follows it


# A user turn's text, which must not end in a space: GPT-2's BPE joins a space to the next word.
Template = Callable[[str], str]


def plain(prompt: str) -> str:
    return f"{prompt}\n"


def alpaca(prompt: str) -> str:
    return (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
    )


TEMPLATES: dict[str, Template] = {"plain": plain, "alpaca": alpaca}


def to_segments(messages: Iterable[Message], template: Template) -> list[Segment]:
    """The same function serves training and, without the last response, generation."""
    return [
        Segment(template(message.content), supervised=False)
        if message.role == "user"
        else Segment(message.content, supervised=True)
        for message in messages
    ]
