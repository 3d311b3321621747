"""Which fields of a record are the prompt and the answer, in the sets that are around."""

import json
from typing import Any

import pytest

from raysft.config.data import Fields
from raysft.data.formats import (
    FORMATS,
    PAIRS,
    TELLING_FIELDS,
    NothingToLearn,
    RecordError,
    detect_format,
    renamed,
    to_conversations,
)
from raysft.data.shapes import READ, Unreadable, unread_fields


def turns(record: dict[str, Any], **fields: str) -> tuple[str, list[tuple[str, str]], set[str]]:
    """Format, (role, content) of the only conversation, and the fields with text not read."""
    known = renamed(record, fields)
    name = detect_format(known)
    (conversation,) = to_conversations(known, FORMATS[name])
    words = [(message.role, message.content) for message in conversation]
    return name, words, unread_fields(record, known, fields, name)


def qa(question: str, answer: str, *before: tuple[str, str]) -> list[tuple[str, str]]:
    return [*before, ("user", question), ("assistant", answer)]


MCQ = "Which?\nA. x\nB. y\nC. z"
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LETTERS = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("record", "expected", "unread"),
    [
        # Dolly
        ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, qa("q\nc", "a"),
         {"category"}),
        ({"instruction": "q", "context": "", "response": "a"}, qa("q", "a"), set()),
        ({"instruction": "q", "input": "", "context": "c", "response": "a"}, qa("q\nc", "a"),
         set()),
        ({"instruction": "q", "input": "i", "context": "c", "response": "a"}, qa("q\ni", "a"),
         {"context"}),
        # OpenOrca
        ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
         qa("q", "a", ("system", "s")), {"id"}),
        ({"system_prompt": "", "question": "q", "response": "a"}, qa("q", "a"), set()),
        # MetaMath
        ({"query": "q", "response": "a", "type": "t", "original_question": "o"}, qa("q", "a"),
         {"type", "original_question"}),
        ({"prompt": "q", "response": "a"}, qa("q", "a"), set()),
        ({"input": "q", "output": "a"}, qa("q", "a"), set()),
        ({"question": "q", "answer": "a", "response": "b"}, qa("q", "a"), {"response"}),
        ({"prompt": "q", "completion": None, "response": "a"}, qa("q", "a"), set()),
        ({"prompt": "q", "completion": 42}, qa("q", "42"), set()),
        ({"instruction": "q", "output": 0.5}, qa("q", "0.5"), set()),
        # SQuAD
        ({"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [0, 1]},
          "title": "t"}, qa("c\nq", "a"), {"title"}),
        ({"context": "c", "question": "q", "answer": "a"}, qa("c\nq", "a"), set()),
        ({"question": "q", "answer": ["a", "b"]}, qa("q", "a"), set()),
        # multiple choice: MMLU, ARC, MedQA, by text, by a number in a text, with an explanation
        ({"question": "Which?", "choices": ["x", "y", "z"], "answer": 1}, qa(MCQ, "B. y"), set()),
        ({"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": LETTERS},
          "answerKey": "C"}, qa(MCQ, "C. z"), set()),
        ({"question": "Which?", "options": {"A": "x", "B": "y", "C": "z"}, "answer": "a"},
         qa(MCQ, "A. x"), set()),
        ({"question": "Which?", "choices": ["x", "y", "z"], "answer": "z"}, qa(MCQ, "C. z"), set()),
        ({"question": "Which?", "choices": '["x", "y", "z"]', "answer": "1"}, qa(MCQ, "B. y"),
         set()),
        ({"question": "Which?", "choices": ["x", "y", "z"], "answer": "It is y, because."},
         qa(MCQ, "It is y, because."), set()),
        ({"instruction": "Which?", "choices": ["x", "y", "z"], "output": "(B)"}, qa(MCQ, "B. y"),
         set()),
        ({"question": "q", "options": {"temperature": "hot"}, "answer": "a"}, qa("q", "a"),
         {"options"}),
        # UltraChat, LMSYS, turns as JSON in a text, {role, text}
        ({"id": "0", "data": ["q", "a"]}, qa("q", "a"), {"id"}),
        ({"conversation": CHAT, "model": "m"}, qa("q", "a"), {"model"}),
        ({"messages": json.dumps(CHAT)}, qa("q", "a"), set()),
        ({"conversations": json.dumps(CHAT), "system_prompt": "s"},
         qa("q", "a", ("system", "s")), set()),
        ({"messages": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}]},
         qa("q", "a"), set()),
        ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]},
                       {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
         qa("q", "a"), set()),
        # what has no text is not told
        ({"prompt": "q", "completion": "a", "n": 3, "v": [0.1, 0.2], "e": {"s": " "}, "x": None},
         qa("q", "a"), set()),
        ({"prompt": "q", "completion": "a", "meta": {"by": ["someone"]}}, qa("q", "a"), {"meta"}),
        ({"prompt": CHAT[:1], "completion": CHAT[1:], "context": "c"}, qa("q", "a"), {"context"}),
        ({"text": "t", "title": "u"}, [("text", "t")], {"title"}),
    ],
)  # fmt: skip
def test_known_shapes_are_read_and_other_text_is_told(
    record: dict[str, Any], expected: list[tuple[str, str]], unread: set[str]
) -> None:
    _, words, rest = turns(record)
    assert (words, rest) == (expected, unread)


@pytest.mark.parametrize("author", ["chatgpt", "bing", "bard", "Assistant", "GPT", "model"])
def test_roles_by_many_names(author: str) -> None:
    record = {"conversations": [{"from": "Human", "value": "q"}, {"from": author, "value": "a"}]}
    assert turns(record)[1] == qa("q", "a")


def test_a_mapping_counts_by_the_name_that_the_record_has() -> None:
    record = {"ask": "q", "reply": "a", "prompt": "p", "passage": "c"}
    fields = {"prompt": "ask", "completion": "reply", "context": "passage"}
    assert turns(record, **fields)[1:] == (qa("c\nq", "a"), {"prompt"})


def test_a_tool_as_json_in_a_text_is_not_escaped_twice() -> None:
    call = {"name": "f"}
    texts, objects = ({"messages": CHAT, "tools": tools} for tools in ([json.dumps(call)], [call]))
    assert turns(texts)[1] == turns(objects)[1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "is 2, but there are 2 choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": -1}, "is -1, but there are 2 choices"),
        ({"prompt": "q", "completion": float("nan")}, "'completion' is float, not text"),
        ({"prompt": "q", "completion": {"a": "b"}}, "'completion' is dict, not text"),
        ({"prompt": "q", "completion": Unreadable("is not valid UTF-8")}, "is not valid UTF-8"),
        ({"data": [{"prompt": "q"}]}, "Its field 'data' may hold the records"),
        ({"messages": "[1"}, "field 'messages' is str, not a list"),
    ],
)
def test_what_is_no_answer_is_told(record: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        turns(record)


def test_a_question_without_answers_teaches_nothing() -> None:
    with pytest.raises(NothingToLearn, match="no answer to train on"):
        turns({"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}})


def test_every_format_says_what_it_reads() -> None:
    assert READ.keys() == {*FORMATS, *PAIRS}
    assert FORMATS.keys() == TELLING_FIELDS.keys()
    first = {names[0] for groups in READ.values() for names in groups} | {"choices"}
    assert first == set(Fields.model_fields)


def test_an_answer_that_is_labelled_as_bad_is_left_out() -> None:
    """The records of KTO: a prompt, an answer, and whether it is a good one."""
    good, bad = ({"prompt": "q", "completion": "a", "label": label} for label in (True, False))
    ((question, answer),) = to_conversations(good, FORMATS["prompt_completion"])
    assert (question.content, answer.content) == ("q", "a")
    with pytest.raises(NothingToLearn, match="its answer is a bad one"):
        to_conversations(bad, FORMATS["prompt_completion"])
