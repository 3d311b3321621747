"""Masks, read with a tokenizer whose tokens are bytes."""

from typing import Any

import numpy as np
import pytest

from raysft.data.formats import Message
from raysft.data.template import TEMPLATES, Segment, to_segments
from raysft.data.tokenize import Example, encode, encode_prompt
from raysft.errors import UserError

CONVERSATION = [Segment("ask", supervised=False), Segment("tell", supervised=True)]


def one(tokenizer: Any, segments: list[Segment], seq_len: int = 64, **options: bool) -> Example:
    (example,) = encode(tokenizer, [segments], seq_len=seq_len, **options)
    return example


def parts(tokenizer: Any, example: Example) -> tuple[str, str]:
    """What is not supervised, and what is."""
    ids, mask = example.input_ids, example.loss_mask
    return tokenizer.decode(ids[~mask]), tokenizer.decode(ids[mask])


def test_response_and_one_end_token_are_supervised(tokenizer: Any) -> None:
    example = one(tokenizer, CONVERSATION)
    assert parts(tokenizer, example) == ("ask", "tell<|endoftext|>")
    assert example.input_ids.dtype == np.int32


def test_without_prompt_mask_everything_is_supervised(tokenizer: Any) -> None:
    example = one(tokenizer, CONVERSATION, mask_prompt=False)
    assert parts(tokenizer, example) == ("", "asktell<|endoftext|>")


def test_every_turn_ends_with_a_supervised_end_token(tokenizer: Any) -> None:
    example = one(tokenizer, [*CONVERSATION, *CONVERSATION])
    assert parts(tokenizer, example) == ("askask", "tell<|endoftext|>tell<|endoftext|>")


def test_the_prompt_is_cut_before_the_response_and_at_its_start(tokenizer: Any) -> None:
    example = one(tokenizer, CONVERSATION, seq_len=6)
    assert parts(tokenizer, example) == ("k", "tell<|endoftext|>")
    assert (example.prompt_cut, example.response_cut) == (2, 0)


def test_a_cut_response_has_no_end_token(tokenizer: Any) -> None:
    example = one(tokenizer, CONVERSATION, seq_len=4)
    assert parts(tokenizer, example) == ("k", "tel")
    assert (example.prompt_cut, example.response_cut) == (2, 2)


def test_exactly_seq_len_is_not_cut(tokenizer: Any) -> None:
    example = one(tokenizer, CONVERSATION, seq_len=8)
    assert parts(tokenizer, example) == ("ask", "tell<|endoftext|>")
    assert (example.prompt_cut, example.response_cut) == (0, 0)


def test_a_special_token_spelled_in_text_stays_text(tokenizer: Any) -> None:
    segments = [Segment("a<|endoftext|>", False), Segment("<|endoftext|>b", True)]
    ids = one(tokenizer, segments).input_ids
    assert list(ids).count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id


def test_no_token_spans_prompt_and_response() -> None:
    """With a BPE that knows ": hi" as one token, the border still separates tokens."""
    from raysft.data import demo

    records = [{"instruction": "x", "input": "", "output": "a: hi a: hi a: hi"}]
    bpe = demo.train_tokenizer(records, vocab_size=300)
    whole = bpe("a: hi", add_special_tokens=False)["input_ids"]
    example = one(bpe, [Segment("a:", False), Segment(" hi", True)])
    assert len(whole) < 4
    assert bpe.decode(example.input_ids[~example.loss_mask]) == "a:"
    assert bpe.decode(example.input_ids[example.loss_mask][:-1]) == " hi"


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_are_the_same_in_training_and_generation(tokenizer: Any, template: str) -> None:
    user, assistant = Message("user", "Say hi.\nTwice"), Message("assistant", "hi hi")
    example = one(tokenizer, to_segments([user, assistant], TEMPLATES[template]), seq_len=999)
    prompt = encode_prompt(tokenizer, to_segments([user], TEMPLATES[template]))
    assert list(example.input_ids[~example.loss_mask]) == prompt
    assert not tokenizer.decode(prompt).endswith(" ")


def test_a_leading_bos_is_kept_as_prompt(tokenizer: Any) -> None:
    class WithBos:
        bos_token_id, eos_token_id, name_or_path = 7, 0, "with-bos"

        def __call__(self, text: Any, **options: Any) -> Any:
            encoded = tokenizer(text, **options)
            return encoded if options else {"input_ids": [7, *encoded["input_ids"]]}

    example = one(WithBos(), CONVERSATION)
    assert example.input_ids[0] == 7
    assert not example.loss_mask[0]


def test_a_tokenizer_without_end_token_is_refused(tokenizer: Any) -> None:
    class Endless:
        bos_token_id, eos_token_id, name_or_path = None, None, "endless"

        def __call__(self, text: Any, **options: Any) -> Any:
            return tokenizer(text, **options)

    with pytest.raises(UserError, match="endless has no end token"):
        one(Endless(), CONVERSATION)
