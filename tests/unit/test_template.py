"""Supervised spans of every kind of template, over conversations that try to break them."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysft.data import borders, demo
from raysft.data.formats import Conversation, Message, RecordError
from raysft.data.template import (
    BUILT_IN,
    Template,
    cut_at_shields,
    install_template,
    prompt_segments,
    to_segments,
)
from raysft.data.tokenize import encode, encode_prompt
from raysft.errors import UserError

# Templates in the manner of models at large.
OTHERS = {
    # A system turn of its own where there is none; words are trimmed; BOS at the start.
    "trimming": """{{ bos_token }}{% if messages and messages[0].role != "system" -%}
{{ "<|start|>system\\nBe kind.<|end|>\\n" }}{% endif %}{% for m in messages -%}
{{ "<|start|>" + m.role + "\\n" + m.content | trim + "<|end|>\\n" }}{% endfor %}
{%- if add_generation_prompt %}{{ "<|start|>assistant\\n" }}{% endif %}""",
    # The last answer opens with an empty thought, which the model has to write itself.
    "thinking": """{% for m in messages %}{{ "<|start|>" + m.role + "\\n" -}}
{% if m.role == "assistant" and loop.last %}{{ "<think></think>" }}{% endif -%}
{{ m.content + "<|end|>" }}{% endfor %}
{%- if add_generation_prompt %}{{ "<|start|>assistant\\n" }}{% endif %}""",
    # No generation prompt: the word "Answer:" is part of what is generated.
    "worded": """{% for m in messages %}{% if m.role == "assistant" -%}
{{ "Answer: " + m.content + eos_token }}{% else %}{{ m.content + "\\n" }}{% endif %}{% endfor %}""",
}
PIECES = [
    *("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|start|>", "<|end|>", "<think>", "{{ x }}"),
    *("{%", " ", "\n", "\t", "word", "é", "日本", "\u2003", "assistant\n", "Answer: "),
]
WORDS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """A system turn or none, then questions, tool results and answers, the last an answer."""
    result = [Message("system", draw(WORDS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        result.append(Message("user", draw(WORDS)))
        if draw(st.booleans()):
            result += [Message("assistant", draw(WORDS)), Message("tool", draw(WORDS))]
        result.append(Message("assistant", draw(WORDS), trained=draw(st.booleans())))
    if not any(m.role == "assistant" and m.trained for m in result):
        result[-1] = result[-1]._replace(trained=True)
    return result


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def base(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """Every byte a token, or a BPE with merges."""
    if request.param == "bytes":
        return tokenizer
    return demo.train_tokenizer(demo.generate(300, seed=1))


@pytest.fixture(scope="module", params=[*BUILT_IN, *OTHERS])
def template(request: pytest.FixtureRequest, base: Any, tmp_path_factory: Any) -> Template:
    own = copy.deepcopy(base)
    if request.param in BUILT_IN:
        return install_template(own, request.param)
    own.add_special_tokens(
        {"additional_special_tokens": ["<|start|>", "<|end|>"], "bos_token": "<|endoftext|>"}
    )
    path = tmp_path_factory.mktemp("templates") / f"{request.param}.jinja"
    path.write_text(OTHERS[request.param])
    return install_template(own, str(path))


def as_trained(template: Template, text: str) -> str:
    return text.strip() if "trimming" in template.name else text


def opening(template: Template, *, last: bool) -> str:
    """What the model writes before the words of an answer."""
    if "worded" in template.name:
        return "Answer: "
    return "<think></think>" if "thinking" in template.name and last else ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations(), last_turn_only=st.booleans())
def test_answers_and_their_end_tokens_are_supervised_and_nothing_else(
    template: Template, conversation: Conversation, last_turn_only: bool
) -> None:
    tokenizer, end = template.tokenizer, template.end_token
    segments = to_segments(conversation, template, last_turn_only=last_turn_only)
    (example,) = encode(template, [segments])
    ids, mask = example.input_ids, example.loss_mask
    trained = [i for i, m in enumerate(conversation) if m.role == "assistant" and m.trained]
    trained = trained[-1:] if last_turn_only else trained
    answers = [
        opening(template, last=i == len(conversation) - 1)
        + as_trained(template, conversation[i].content)
        + end
        for i in trained
    ]
    assert tokenizer.decode(ids[mask]) == "".join(answers)

    # What is found for turns that no layout fits is the same.
    whole = borders.rendered(template, conversation, None, answer_next=False)
    found = cut_at_shields(whole.text, borders.answer_spans(whole, conversation, trained))
    (other,) = encode(template, [found])
    assert other.input_ids.tolist() == ids.tolist()
    assert other.loss_mask.tolist() == mask.tolist()

    # Decoded as a whole it is what transformers renders, up to the last trained answer.
    turns = [{"role": m.role, "content": m.content} for m in conversation]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    text = tokenizer.decode(ids)
    assert rendered.startswith(text)
    assert text.endswith(answers[-1])

    # No special token comes from the words: as many as the template writes around empty ones.
    blank = [{"role": m.role, "content": "-"} for m in conversation]
    after = rendered[len(text) :]
    for token in tokenizer.all_special_tokens:
        written = tokenizer.apply_chat_template(blank, tokenize=False).count(token)
        if conversation[-1].trained:
            written -= after.count(token)
            assert list(ids).count(tokenizer.convert_tokens_to_ids(token)) == written

    # The tokens before an answer are those it would be generated from.
    for index, (begin, _) in zip(trained, example.answers, strict=False):
        if len(example.answers) != len(trained):  # answers that follow each other are one span
            break
        before = prompt_segments(conversation[:index], template)
        assert encode_prompt(template, before) == list(ids[:begin])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=WORDS)
def test_a_document_is_supervised_whole(template: Template, text: str) -> None:
    (example,) = encode(template, [to_segments([Message("text", text)], template)])
    decoded = template.tokenizer.decode(example.input_ids[example.loss_mask])
    assert decoded == text + template.tokenizer.eos_token


def test_prompts_equal_those_of_transformers(template: Template) -> None:
    """Where no words spell a special token, any tool that uses the chat template agrees."""
    conversation = [Message("user", "Sort the words."), Message("assistant", "apple bird")]
    turns = [{"role": m.role, "content": m.content} for m in conversation]
    expected = template.tokenizer.apply_chat_template(
        turns[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert encode_prompt(template, prompt_segments(conversation[:1], template)) == expected


def test_built_in_templates_read_as_documented(tokenizer: Any) -> None:
    conversation = [
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "a"),
        Message("tool", "t"),
        Message("assistant", "b"),
    ]
    expected = {
        "plain": "s\nq\na<|endoftext|>t\nb<|endoftext|>",
        "alpaca": "s\n\n### Instruction:\nq\n\n### Response:\na<|endoftext|>"
        "### Result:\nt\n\n### Response:\nb<|endoftext|>",
        "chatml": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>tool\nt<|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n",
    }
    for name, text in expected.items():
        template = install_template(copy.deepcopy(tokenizer), name)
        assert "".join(s.text for s in to_segments(conversation, template)) == text
    template = install_template(copy.deepcopy(tokenizer), "alpaca")
    (preamble, *_) = to_segments(conversation[1:3], template)
    assert preamble.text.startswith("Below is an instruction that describes a task.")


def test_auto_takes_the_tokenizers_own_template_or_plain(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    assert install_template(own, "auto").name == "plain"
    own.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    template = install_template(own, "auto")
    assert (template.name, template.num_added, template.stop_ids) == ("tokenizer", 0, [0])


def test_chatml_adds_the_tokens_that_are_missing(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    template = install_template(own, "chatml")
    assert (template.num_added, len(own)) == (2, len(tokenizer) + 2)
    assert template.stop_ids == [own.convert_tokens_to_ids("<|im_end|>"), own.eos_token_id]
    assert install_template(own, "chatml").num_added == 0


def test_a_leading_bos_is_kept_as_prompt(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<s>"})
    bos = own.bos_token_id
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    template = install_template(own, "plain")
    for conversation in ([Message("user", "q"), Message("assistant", "a")], [Message("text", "t")]):
        (example,) = encode(template, [to_segments(conversation, template)])
        assert list(example.input_ids).count(bos) == 1
        assert example.input_ids[0] == bos
        assert not example.loss_mask[0]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("chatm", None, r"no template or Jinja file 'chatm'; did you mean 'chatml'\?"),
        ("t.jinja", "{% for", "renders no question and answer: .* refuses"),
        ("t.jinja", "{{ raise_exception('no') }}", "refuses .*: no"),
        ("t.jinja", "{{ messages[0].content }}{{ eos_token }}", "leaves out assistant turns"),
        (
            "t.jinja",
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "ends an answer without a special token",
        ),
        (
            "t.jinja",
            "{{ messages | length }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
            "writes turn 2 after another prompt than it would be generated from",
        ),
        ("tokenizer", None, "has no chat template of its own"),
    ],
)
def test_templates_that_cannot_be_used_say_why(
    tokenizer: Any, tmp_path: Path, name: str, source: str | None, message: str
) -> None:
    if source is not None:
        (tmp_path / name).write_text(source)
        name = str(tmp_path / name)
    with pytest.raises(UserError, match=message):
        install_template(copy.deepcopy(tokenizer), name)


def test_a_template_that_rewrites_words_is_caught(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.content.replace('bad', '') + eos_token }}{% endfor %}"
    )
    template = install_template(copy.deepcopy(tokenizer), str(path))
    with pytest.raises(RecordError, match="rewrites the words of an answer"):
        to_segments([Message("user", "q"), Message("assistant", "bad")], template)


def test_a_tokenizer_without_end_token_is_refused(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        install_template(own, "plain")
