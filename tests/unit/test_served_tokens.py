"""The tokens of training against those that transformers makes of the same prompts."""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest

from raysft.data.template import Template, install_template, prompt_segments, to_segments
from raysft.data.tokenize import Example, encode, encode_prompt
from raysft.data.turns import Conversation, Message
from tests.tokenizers_of_families import FAMILIES, TEMPLATES

WORDS = [
    ("What is the capital of France?", "Paris is the capital."),
    (" one", " two "),
    ("a b\n\nc", "\n\nred\n"),
    ("café 日本 🙂", "🙂 that's it"),
    ("q:", "(a)"),
    ("the colour is", "the colour is\nblue  and   green"),
    ("1", "1"),
    ("tab\t", "\ttab"),
]
CONVERSATIONS = [
    *([Message("user", q), Message("assistant", a)] for q, a in WORDS),
    *(
        [Message("user", q), Message("assistant", a), Message("user", r), Message("assistant", b)]
        for (q, a), (r, b) in pairwise(WORDS)
    ),
]
PAIRS = [(family, name) for family in FAMILIES for name in TEMPLATES]


@lru_cache
def installed(family: str, name: str) -> Template:
    tokenizer = FAMILIES[family]()
    tokenizer.chat_template = TEMPLATES[name]
    return install_template(tokenizer, "auto")


def served(template: Template, conversation: Conversation, **options: Any) -> list[int]:
    """What a server sends for a conversation: the call that it makes."""
    turns = [{"role": m.role, "content": m.content} for m in conversation]
    return list(
        template.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
    )


def trained(template: Template, conversation: Conversation) -> Example:
    (example,) = encode(template, [to_segments(conversation, template)])
    return example


def begins(ids: list[int], with_ids: list[int]) -> bool:
    return ids[: len(with_ids)] == with_ids


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_an_answer_is_trained_after_the_tokens_that_a_server_sends(family: str, name: str) -> None:
    template = installed(family, name)
    clean = 0
    for conversation in CONVERSATIONS:
        example = trained(template, conversation)
        ids = example.input_ids.tolist()
        answers = [i for i, m in enumerate(conversation) if m.role == "assistant"]
        prompts = [
            served(template, conversation[:index], add_generation_prompt=True) for index in answers
        ]
        assert len(example.answers) == len(prompts)
        (begin, _), *later = example.answers
        assert ids[:begin] == prompts[0]
        # A later prompt holds earlier answers. Where a token joins one to its own prompt, no
        # sequence begins with the tokens of both, and those of the earlier prompt are kept.
        for (begin, _), before, prompt in zip(later, prompts, prompts[1:], strict=False):
            if begins(prompt, before):
                assert ids[:begin] == prompt
                clean += 1
        whole = served(template, conversation)
        if all(begins(whole, prompt) for prompt in prompts):
            assert begins(whole, ids)
            clean += 1
        for index, prompt in zip(answers, prompts, strict=True):
            asked = prompt_segments(conversation[:index], template)
            assert encode_prompt(template, asked) == prompt
    assert clean >= 4


@pytest.mark.parametrize(("family", "name"), [pair for pair in PAIRS if pair[0] != "unigram"])
def test_only_the_answer_and_its_end_are_supervised(family: str, name: str) -> None:
    template = installed(family, name)
    tokenizer = template.tokenizer
    for question, answer in WORDS:
        example = trained(template, [Message("user", question), Message("assistant", answer)])
        told = tokenizer.decode(example.input_ids[example.loss_mask])
        assert told.endswith(template.end_token)
        assert told.removesuffix(template.end_token).split() == answer.split()
        assert example.loss_mask.sum() == example.answers[0][1] - example.answers[0][0]


def tokens(template: Template, question: str, answer: str) -> list[str]:
    example = trained(template, [Message("user", question), Message("assistant", answer)])
    ids = example.input_ids[example.loss_mask].tolist()
    return list(template.tokenizer.convert_ids_to_tokens(ids))


def test_an_answers_leading_space_is_part_of_its_first_word() -> None:
    """Two tokens, a lone space and "Paris", are what no model generates."""
    words = tokens(installed("gpt2", "vicuna"), "Where?", "Paris is")
    assert words == ["ĠParis", "Ġis", "</s>"]
    assert tokens(installed("llama2", "vicuna"), "Where?", "Paris is") == ["▁Paris", "▁is", "</s>"]


@pytest.mark.parametrize("family", ["llama2", "mistral", "gemma"])
def test_an_answer_gets_no_space_that_begins_texts(family: str) -> None:
    """Of its own it would be encoded with one, after a line break it is not."""
    first = tokens(installed(family, "chatml"), "Where?", "Paris is")[0]
    assert not first.startswith("▁")


def test_tokens_that_strip_eat_the_white_space_beside_them() -> None:
    template = installed("phi3", "touching")
    assert tokens(template, "q", " Paris")[0] == "▁Paris"  # the space is gone, but one is put back
    bare = installed("phi3-byte-level", "touching")
    assert tokens(bare, "q", "\n Paris is") == [*tokens(bare, "q", "Paris is")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["chatml", "vicuna", "phi3"])
def test_words_that_spell_a_special_token_stay_text(family: str, name: str) -> None:
    template = installed(family, name)
    tokenizer = template.tokenizer
    plain = [Message("user", "a x b"), Message("assistant", "c x d")]
    spelling = [Message("user", "a </s><|end|> b"), Message("assistant", "c <|im_end|> d")]
    ids, expected = (trained(template, c).input_ids.tolist() for c in (spelling, plain))
    unknown = {tokenizer.unk_token_id}
    for token in set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder) - unknown:
        if token not in unknown:
            assert ids.count(token) == expected.count(token)
    asked = encode_prompt(template, prompt_segments(spelling[:1], template))
    begin = trained(template, spelling).answers[0][0]
    assert asked == ids[:begin]
    if family != "unigram":
        assert "</s><|end|>" in tokenizer.decode(ids).replace(" ", "")
