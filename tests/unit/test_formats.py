"""Raw records of every format to conversations."""

import json
from typing import Any

import pytest

from raysft.data.formats import (
    FORMATS,
    Message,
    NothingToLearn,
    RecordError,
    detect_format,
    renamed,
    to_conversations,
    turn,
)


def turns(record: dict[str, Any], name: str | None = None) -> list[tuple[str, str]]:
    """(role, content) of a record's only conversation."""
    (conversation,) = to_conversations(record, FORMATS[name or detect_format(record)])
    return [(message.role, message.content) for message in conversation]


QA = [("user", "q"), ("assistant", "a")]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("record", "format_name"),
    [
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"instruction": "q", "input": " ", "response": "a"}, "alpaca"),
        ({"instruction": "q", "input": None, "output": "a"}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"question": "q", "answer": "a"}, "prompt_completion"),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            "prompt_completion",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "messages",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "messages",
        ),
        ({"conversations": SHAREGPT}, "sharegpt"),
        ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, "self_instruct"),
    ],
)
def test_one_question_and_answer_in_every_format(record: dict[str, Any], format_name: str) -> None:
    assert detect_format(record) == format_name
    assert turns(record) == QA


def test_alpaca_joins_input_and_takes_system_and_history() -> None:
    record = {"instruction": "q", "input": "i", "output": "a"}
    assert turns(record)[0] == ("user", "q\ni")
    record |= {"system": "s", "history": [["q0", "a0"]]}
    assert turns(record) == [
        ("system", "s"),
        ("user", "q0"),
        ("assistant", "a0"),
        ("user", "q\ni"),
        ("assistant", "a"),
    ]


def test_every_instance_of_self_instruct_is_a_conversation() -> None:
    record = {
        "instruction": "q",
        "instances": [{"input": "i", "output": "a"}, {"input": "", "output": "b"}],
    }
    conversations = to_conversations(record, FORMATS["self_instruct"])
    assert [[m.content for m in c] for c in conversations] == [["q\ni", "a"], ["q", "b"]]


def test_sharegpt_tool_roles_and_tools() -> None:
    record = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "f()"},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": "[1]",
    }
    assert turns(record) == [
        ("tools", "[1]"),
        ("system", "s"),
        ("user", "q"),
        ("assistant", "f()"),
        ("tool", "o"),
        ("assistant", "a"),
    ]
    assert turns({"conversations": SHAREGPT, "tools": "[]"}) == QA


def test_calls_are_read_in_every_spelling() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    spelt = {"name": "f", "arguments": '{"x": 1}'}
    answers = [
        {"content": None, "tool_calls": [{"type": "function", "function": spelt}]},
        {"content": None, "tool_calls": [call]},
        {"content": "", "tool_calls": json.dumps([call])},
        {"content": "", "function_call": spelt},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]
    for answer in answers:
        message = turn({"role": "assistant"} | answer if "from" not in answer else answer)
        assert (message.role, message.content) == ("assistant", "")
        assert message.calls == (call,)
        assert message.calls_text == '{"name": "f", "arguments": {"x": 1}}'
    held = turn({"role": "assistant", "tool_calls": [{"id": "1", "function": spelt}]})
    assert held.calls == ({"type": "function", "id": "1", "function": call["function"]},)
    nothing = {"name": "f", "arguments": ""}
    assert turn({"role": "assistant", "function_call": nothing}).calls[0]["function"] == {
        "name": "f",
        "arguments": {},
    }
    text = turn({"from": "function_call", "value": "f()"})
    assert (text.content, text.calls) == ("f()", ())


def test_what_else_a_turn_holds_goes_to_the_template() -> None:
    given = {"role": "tool", "content": "o", "tool_call_id": "1", "name": "f", "id": None}
    assert turn(given).fields == {"tool_call_id": "1", "name": "f"}
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert turn({"role": "assistant", "content": "a", name: "hm"}).reasoning == "hm"
    assert turn({"role": "assistant", "reasoning_content": "hm"}).content == ""


@pytest.mark.parametrize("tools", [" ", "null", "[ ]", "[]", "", None, []])
def test_no_tools_in_every_spelling(tools: Any) -> None:
    assert turns({"conversations": SHAREGPT, "tools": tools}) == QA


def test_tools_are_json_once() -> None:
    function = {"name": "f", "parameters": {}}
    tool = {"type": "function", "function": function}
    for given in ([json.dumps(function)], [function], json.dumps([function]), [tool]):
        (conversation,) = to_conversations(
            {"messages": conversation_of("q", "a"), "tools": given}, FORMATS["messages"]
        )
        assert conversation[0].role == "tools"
        assert conversation[0].fields == {"tools": [tool]}
        assert "\\" not in conversation[0].content
    older = {"messages": conversation_of("q", "a"), "functions": [function]}
    assert to_conversations(older, FORMATS["messages"])[0][0].fields == {"tools": [tool]}
    assert turns({"conversations": SHAREGPT, "tools": "f(x) adds"})[0] == ("tools", "f(x) adds")


def test_system_turns_keep_their_order() -> None:
    first, second = ({"role": r, "content": w} for r, w in (("developer", "1"), ("system", "2")))
    record = {"messages": [first, second, *conversation_of("q", "a")]}
    assert turns(record) == [("system", "1"), ("system", "2"), *QA]
    assert turns(record | {"system": "0"}) == [("system", "0\n\n1"), ("system", "2"), *QA]


@pytest.mark.parametrize("name", ["weight", "loss", "train", "training", "trainable", "train_on"])
def test_a_turn_says_itself_whether_it_is_trained(name: str) -> None:
    for no in (0, "0", 0.0, False, "false", "False"):
        assert not turn({"role": "assistant", "content": "a", name: no}).trained
    for yes in (1, "1", 1.0, True, "true", None):
        assert turn({"role": "assistant", "content": "a", name: yes}).trained
    with pytest.raises(RecordError, match=f"'{name}' of a turn tells whether it is trained"):
        turn({"role": "assistant", "content": "a", name: 0.5})


def test_an_empty_answer_is_not_trained_in_any_turn() -> None:
    """Its end token alone would teach to end at once."""
    record = {"messages": [*conversation_of("q", " "), *conversation_of("r", "b")]}
    (conversation,) = to_conversations(record, FORMATS["messages"])
    assert [m.trained for m in conversation if m.role == "assistant"] == [False, True]
    with pytest.raises(NothingToLearn, match="the response is empty"):
        to_conversations({"messages": conversation_of("q", "")}, FORMATS["messages"])


def test_turns_that_are_only_context_are_not_trained() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "b", "weight": 1},
        ]
    }
    (conversation,) = to_conversations(record, FORMATS["messages"])
    assert [m.trained for m in conversation if m.role == "assistant"] == [False, True]
    record["messages"][3]["weight"] = 0
    with pytest.raises(NothingToLearn, match="no answer to train on"):
        to_conversations(record, FORMATS["messages"])
    record = {
        "prompt": [*conversation_of("q", "a"), {"role": "user", "content": "r"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    (conversation,) = to_conversations(record, FORMATS["prompt_completion"])
    assert [m.trained for m in conversation if m.role == "assistant"] == [False, True]


def conversation_of(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_text_is_a_document() -> None:
    assert detect_format({"text": "t", "id": 1}) == "text"
    assert to_conversations({"text": "t"}, FORMATS["text"]) == [[Message("text", "t")]]


def test_fields_are_mapped() -> None:
    record = renamed({"ask": "q", "reply": "a", "prompt": "x"}, {"prompt": "ask", "output": "none"})
    assert record == {"reply": "a", "prompt": "q"}
    record = renamed({"ask": "q", "reply": "a"}, {"instruction": "ask", "output": "reply"})
    assert turns(dict(record)) == QA


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"instruction": "q"},
            "no field 'output' or .*; its fields are 'instruction'",
        ),
        ({"instruction": 3, "output": "a"}, "field 'instruction' is int, not text"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "'history' is not a list of"),
        ({"instruction": "q", "instances": {}}, "field 'instances' is dict, not a list"),
        ({"instruction": "q", "instances": []}, "field 'instances' is empty"),
        ({"instruction": "q", "instances": ["a"]}, "an instance is str, not an object"),
        ({"messages": "hi"}, "field 'messages' is str, not a list"),
        ({"messages": ["hi"]}, "a turn is str, not an object"),
        ({"messages": [{"role": "narrator", "content": ""}]}, "role 'narrator' is none of system"),
        ({"messages": [{"content": ""}]}, "no field 'role' or 'from'"),
        ({"messages": [{"role": "user", "content": 1}]}, "the content of a user turn is int"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "something other than text, such as an image",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "arguments of a function call are not valid JSON",
        ),
    ],
)
def test_bad_records_say_why(record: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        to_conversations(record, FORMATS[detect_format(record)])


def test_what_is_no_object_or_no_known_format() -> None:
    with pytest.raises(RecordError, match="a record is a JSON object, but this is list"):
        renamed([1, 2], {})
    with pytest.raises(RecordError, match="no known format: its fields are 'body'"):
        detect_format({"body": ""})


def test_blank_answers_teach_nothing() -> None:
    with pytest.raises(NothingToLearn, match="the response is empty"):
        to_conversations({"instruction": "q", "output": " \n"}, FORMATS["alpaca"])
    with pytest.raises(NothingToLearn, match="no answer to train on"):
        to_conversations({"messages": [{"role": "user", "content": "q"}]}, FORMATS["messages"])
