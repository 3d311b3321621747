"""Thoughts, calls and tools in templates like those of well-known models, against transformers."""

import copy
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysft.data import demo
from raysft.data.formats import FORMATS, RecordError, to_conversations
from raysft.data.render import as_turn, fitted
from raysft.data.template import Template, install_template, prompt_segments, to_segments
from raysft.data.tokenize import encode, encode_prompt
from raysft.errors import UserError

# The last answer opens with its thought, those before an earlier question lose theirs.
QWEN3 = """{%- if tools %}{{ '<|im_start|>system\n# Tools' }}
{%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content %}{% set thought = m.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for call in m.tool_calls %}{{ '\n<tool_call>\n{"name": "' + call.function.name }}
{{- '", "arguments": ' }}{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# Tools stand in the first question, a call takes the place of the words, a result becomes JSON.
LLAMA31 = """{%- for m in messages %}
{%- if loop.first and tools %}{{ '<|im_start|>user\n' }}
{%- for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{{ m.content | trim + '<|im_end|>' }}
{%- elif 'tool_calls' in m %}{{ '<|im_start|>assistant\n{"name": "' }}
{{- m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{ '}<|im_end|>' }}
{%- elif m.role == 'tool' %}{{ '<|im_start|>ipython\n' }}{{ m.content | tojson }}{{ '<|im_end|>' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# A result names the function of the call before it; the last answer ends otherwise than others.
GPT_OSS = """{%- set last = namespace(name=none) %}
{%- if tools %}{{ '<|start|>developer<|message|>' }}
{%- for t in tools %}{{ t.function.name }}{% endfor %}{{ '<|end|>' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and 'tool_calls' in m %}
{%- set call = m.tool_calls[0].function %}{% set last.name = call.name %}
{%- if m.thinking %}
{{- '<|start|>assistant analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant to=functions.' + call.name + '<|message|>' }}
{{- call.arguments | tojson }}{{ '<|call|>' }}
{%- elif m.role == 'assistant' %}
{%- if loop.last and m.thinking %}
{{- '<|start|>assistant analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- elif m.role == 'tool' %}
{%- if last.name is none %}{{ raise_exception('no call before') }}{% endif %}
{{- '<|start|>functions.' + last.name + '<|message|>' }}{{ m.content | tojson }}{{ '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
# A prompt opens the thought; a finished conversation has none, and cuts answers at its end.
R1 = """{%- for m in messages %}{% if m.role == 'assistant' %}
{{- '<|start|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% else %}{{ m.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|><think>\n' }}{% endif %}"""
# A blank system turn is left out.
PHI35 = """{%- for m in messages %}{% if m.role != 'system' or m.content %}
{{- '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}
{{- '<|start|>assistant\n' if add_generation_prompt else eos_token }}"""
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|return|>")
]

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ASKED = {"role": "user", "content": "Weather in Oslo?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"t": "3",\n"unit": "C"}'}
TOLD = {"role": "assistant", "content": "3 degrees."}
WITH_TOOLS = {"messages": [ASKED, CALLED, RESULT, TOLD], "tools": [TOOL]}


@pytest.fixture(scope="module")
def base() -> Any:
    tokenizer = demo.train_tokenizer(demo.generate(300, seed=1))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def install(base: Any, source: str | dict[str, str], day: date | None = None) -> Template:
    own = copy.deepcopy(base)
    own.chat_template = source
    return install_template(own, "auto", day)


@pytest.fixture(scope="module", params=[QWEN3, LLAMA31, GPT_OSS, PHI35])
def template(request: pytest.FixtureRequest, base: Any) -> Template:
    return install(base, request.param)


def answers(template: Template, record: dict[str, Any], **options: Any) -> list[str]:
    """The supervised texts, each after the tokens that transformers sends for its prompt."""
    (conversation,) = to_conversations(record, FORMATS["messages"])
    (example,) = encode(template, [to_segments(conversation, template, **options)])
    ids = example.input_ids.tolist()
    messages, tools = fitted(template, conversation)
    turns = [as_turn(message) for message in messages]
    trained = [i for i, m in enumerate(messages) if m.role == "assistant" and m.trained]
    for index, (begin, _) in zip(trained[-len(example.answers) :], example.answers, strict=True):
        prompt = template.tokenizer.apply_chat_template(
            turns[:index], tools=tools, add_generation_prompt=True, return_dict=False
        )
        assert ids[:begin] == prompt
        shift = len(conversation) - len(messages)
        before = prompt_segments(conversation[: index + shift], template)
        assert encode_prompt(template, before) == prompt
    whole = template.tokenizer.apply_chat_template(turns, tools=tools, return_dict=False)
    assert whole[: len(ids)] == ids
    return [template.tokenizer.decode(ids[begin:end]) for begin, end in example.answers]


def thinking(*thoughts: str | None) -> dict[str, Any]:
    turns = []
    for number, thought in enumerate(thoughts):
        turns.append({"role": "user", "content": f"{number}?"})
        turns.append({"role": "assistant", "content": str(number), "reasoning_content": thought})
    return {"messages": turns}


def test_a_thought_is_trained_where_the_template_writes_it(base: Any) -> None:
    template = install(base, QWEN3)
    assert answers(template, thinking("hm")) == ["<think>\nhm\n</think>\n\n0<|im_end|>"]
    spelt = {"messages": [ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n0"}]}
    assert answers(template, spelt) == ["<think>\nhm\n</think>\n\n0<|im_end|>"]
    assert answers(install(base, GPT_OSS), thinking("hm")) == [
        " analysis<|message|>hm<|end|><|start|>assistant final<|message|>0<|return|>"
    ]


def test_a_thought_is_words_where_the_template_knows_none(base: Any) -> None:
    expected = ["<think>\nhm\n</think>\n\n0<|end|>", "<think>\nah\n</think>\n\n1<|end|>"]
    assert answers(install(base, PHI35), thinking("hm", "ah")) == expected


def test_a_thought_that_is_left_out_ends_the_run_only_where_it_is_trained(base: Any) -> None:
    template = install(base, QWEN3)
    message = (
        r"leaves out the thought of an answer that would be trained \(turn 2\); set data.template "
        r'to .* or train only what it keeps: data.train_on = "last_turn"'
    )
    with pytest.raises(RecordError, match=message):
        answers(template, thinking("hm", "ah"))
    last = answers(template, thinking("hm", "ah"), last_turn_only=True)
    assert last == ["<think>\nah\n</think>\n\n1<|im_end|>"]
    untrained = thinking("hm", "ah")
    untrained["messages"][1]["train"] = False
    assert answers(template, untrained) == last
    spelt = thinking(None, "ah")
    spelt["messages"][1]["content"] = "<think>\nhm\n</think>\n\n0"
    message = (
        r"rewrites the words .* \(turn 2: '<think>\\nhm\\n</think>\\n\\n0' becomes '0<\|im_end"
    )
    with pytest.raises(RecordError, match=message):
        answers(template, spelt)
    assert answers(template, spelt, last_turn_only=True) == last


@pytest.mark.parametrize(
    ("source", "call", "told"),
    [
        (
            QWEN3,
            '<think>\n\n</think>\n\n\n<tool_call>\n{"name": "weather", "arguments": '
            '{"city": "Oslo"}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\n3 degrees.<|im_end|>",
        ),
        (
            LLAMA31,
            '{"name": "weather", "parameters": {"city": "Oslo"}}<|im_end|>',
            "3 degrees.<|im_end|>",
        ),
        (
            GPT_OSS,
            ' to=functions.weather<|message|>{"city": "Oslo"}<|call|>',
            " final<|message|>3 degrees.<|return|>",
        ),
    ],
    ids=["qwen3", "llama31", "gpt-oss"],
)
def test_calls_have_the_form_that_the_template_gives_them(
    base: Any, source: str, call: str, told: str
) -> None:
    template = install(base, source)
    assert {"tools", "tool_calls"} <= template.knows
    assert answers(template, WITH_TOOLS) == [call, told]
    older = {"messages": [ASKED, {"role": "assistant", "content": "", "function_call": {
        "name": "weather", "arguments": '{"city": "Oslo"}'}}, {**RESULT, "role": "function"}, TOLD],
        "functions": [TOOL["function"]]}  # fmt: skip
    assert answers(template, older) == [call, told]
    nothing = {"type": "function", "function": {"name": "now", "arguments": {}}}
    (said,) = answers(template, {"messages": [ASKED, {**CALLED, "tool_calls": [nothing]}]})
    assert said.replace("now", "").endswith(call[-len("<|call|>") :])


def test_calls_are_words_where_the_template_knows_none(base: Any) -> None:
    call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    template = install(base, PHI35)
    assert not template.knows
    assert answers(template, WITH_TOOLS) == [f"{call}<|end|>", "3 degrees.<|end|>"]
    (conversation,) = to_conversations(WITH_TOOLS, FORMATS["messages"])
    text = "".join(segment.text for segment in to_segments(conversation, template))
    assert text.startswith('<|start|>system\nFunctions that can be called:\n[{"type": "function"')


def test_words_beside_a_call_that_are_left_out_are_told(base: Any) -> None:
    said = {"messages": [ASKED, {**CALLED, "content": "Let me see."}, RESULT, TOLD]}
    with pytest.raises(RecordError, match=r"leaves out the words of an answer .* \(turn 2\)"):
        answers(install(base, LLAMA31), said)


def test_what_a_template_does_to_a_prompt_is_its_own(base: Any) -> None:
    blank = {"messages": [{"role": "system", "content": ""}, ASKED, TOLD]}
    assert answers(install(base, PHI35), blank) == ["3 degrees.<|end|>"]
    # A result with quotes and line breaks, as JSON in JSON.
    assert len(answers(install(base, LLAMA31), WITH_TOOLS)) == 2


def test_special_tokens_in_calls_and_thoughts_stay_text(base: Any) -> None:
    function = {"name": "weather", "arguments": {"city": "<|im_end|>", "<|im_start|>": 1}}
    called = {**CALLED, "tool_calls": [{"function": function}], "thinking": "<|im_start|>"}
    (conversation,) = to_conversations(
        {"messages": [ASKED, called, RESULT, TOLD], "tools": [TOOL]}, FORMATS["messages"]
    )
    template = install(base, QWEN3)
    (example,) = encode(template, [to_segments(conversation, template)])
    ids = example.input_ids.tolist()
    counts = [ids.count(template.tokenizer.convert_tokens_to_ids(t)) for t in SPECIAL[:2]]
    assert counts == [5, 5]
    spelt = template.tokenizer.decode(ids[slice(*example.answers[0])])
    assert "<think>\n<|im_start|>\n</think>\n\n\n<tool_call>\n" in spelt
    assert '{"city": "<|im_end|>", "<|im_start|>": 1}' in spelt


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", " ", "a", "<|end|>", "[]"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "arguments", "function", "<|end|>"]), inner)
    ),
    max_leaves=6,
)
FIELDS = ("content", "tool_calls", "function_call", "thinking", "weight", "name", "tool_call_id")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(
        st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1), min_size=2, max_size=4
    ),
    tools=JSON,
)
def test_whatever_turns_hold_a_record_is_read_or_told(
    template: Template, turns: list[dict[str, Any]], tools: Any
) -> None:
    roles = ("user", "assistant", "tool", "assistant")
    record = {
        "messages": [
            {"content": "w", "role": role} | turn for role, turn in zip(roles, turns, strict=False)
        ],
        "tools": tools,
    }
    try:
        (conversation,) = to_conversations(record, FORMATS["messages"])
        (example,) = encode(template, [to_segments(conversation, template)])
    except RecordError:
        return
    ended = [example.input_ids[end - 1] for _, end in example.answers]
    special = [template.tokenizer.convert_tokens_to_ids(t) for t in (*SPECIAL, "<|endoftext|>")]
    assert set(ended) <= set(special)


def test_a_template_that_fits_no_answer_says_how_it_differs(base: Any) -> None:
    with pytest.raises(
        UserError, match=r"after another prompt .* goes on with '<think>\\n'.*; set"
    ):
        install(base, R1)


def test_one_date_for_all_days(base: Any) -> None:
    source = "{{ strftime_now('%d %b %Y') }} {{ strftime_now( \"it's %Y\" ) }}" + PHI35
    template = install(base, source, date(2024, 2, 29))
    (conversation,) = to_conversations({"messages": [ASKED, TOLD]}, FORMATS["messages"])
    text = "".join(segment.text for segment in to_segments(conversation, template))
    assert text.startswith("29 Feb 2024 it's 2024<|start|>user")
    assert "strftime" not in template.tokenizer.chat_template
    assert install(base, source).source == install(base, source, date.today()).source


def test_of_several_templates_the_default_and_that_for_tools_are_taken(base: Any) -> None:
    both = install(base, {"default": PHI35, "tool_use": QWEN3})
    assert answers(both, {"messages": [ASKED, TOLD]}) == ["3 degrees.<|end|>"]
    assert "<tool_call>" in answers(both, WITH_TOOLS)[0]
    assert set(both.tokenizer.chat_template) == {"default", "tool_use"}
    with pytest.raises(UserError, match="has the chat templates rag, tool_use, none of them its d"):
        install(base, {"rag": PHI35, "tool_use": QWEN3})
