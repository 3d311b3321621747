"""Masks and cuts, read with a tokenizer whose tokens are bytes."""

import copy
from typing import Any

import numpy as np
import pytest

from raysft.data.template import Segment, Template, install_template
from raysft.data.tokenize import Example, cuts, encode, window

END = Segment("<|endoftext|>", supervised=True, markup=True)
ASK, TELL = Segment("ask", supervised=False), Segment("tell", supervised=True)


@pytest.fixture(scope="module")
def plain(tokenizer: Any) -> Template:
    return install_template(copy.deepcopy(tokenizer), "plain")


def one(template: Template, *segments: Segment) -> Example:
    (example,) = encode(template, [segments])
    return example


def parts(template: Template, example: Example, seq_len: int = 999) -> tuple[str, str]:
    """What is not supervised, and what is, of the tokens that are kept."""
    kept = slice(*window(example, seq_len))
    ids, mask = example.input_ids[kept], example.loss_mask[kept]
    return template.tokenizer.decode(ids[~mask]), template.tokenizer.decode(ids[mask])


def test_response_and_one_end_token_are_supervised(plain: Template) -> None:
    example = one(plain, ASK, TELL, END)
    assert parts(plain, example) == ("ask", "tell<|endoftext|>")
    assert example.input_ids.dtype == np.int32
    assert example.answers == [(3, 8)]


def test_every_turn_ends_with_a_supervised_end_token(plain: Template) -> None:
    example = one(plain, ASK, TELL, END, ASK, TELL, END)
    assert parts(plain, example) == ("askask", "tell<|endoftext|>tell<|endoftext|>")
    assert example.answers == [(3, 8), (11, 16)]


def test_what_follows_the_last_answer_is_left_out(plain: Template) -> None:
    assert parts(plain, one(plain, ASK, TELL, END, ASK)) == ("ask", "tell<|endoftext|>")


@pytest.mark.parametrize(
    ("seq_len", "prompt", "response"),
    [
        (8, "ask", "tell<|endoftext|>"),  # exactly fits
        (6, "k", "tell<|endoftext|>"),  # the prompt goes first, from its start
        (4, "sk", "te"),  # a response that cannot fit is cut at its end, and keeps its question
    ],
)
def test_the_prompt_is_cut_before_the_response(
    plain: Template, seq_len: int, prompt: str, response: str
) -> None:
    assert parts(plain, one(plain, ASK, TELL, END), seq_len) == (prompt, response)


@pytest.mark.parametrize(
    ("seq_len", "prompt", "response"),
    [
        (16, "askask", "tell<|endoftext|>tell<|endoftext|>"),
        (15, "askask", "tell<|endoftext|>tell"),
        (12, "askask", "tell<|endoftext|>t"),
        (11, "ask", "tell<|endoftext|>"),  # a question whose answer is cut off goes with it
        (9, "ask", "tell<|endoftext|>"),
        (7, "sk", "tell<|endoftext|>"),
    ],
)
def test_later_turns_are_cut_before_the_first_question(
    plain: Template, seq_len: int, prompt: str, response: str
) -> None:
    example = one(plain, ASK, TELL, END, ASK, TELL, END)
    assert parts(plain, example, seq_len) == (prompt, response)


def test_cuts_of_numbers_and_of_arrays_agree() -> None:
    rows = [(length, lead, end) for length in (20, 90) for lead in (0, 3, 9) for end in (10, 20)]
    lengths, leads, ends = map(np.array, zip(*rows, strict=True))
    for seq_len in (4, 8, 32):
        prompts, responses = cuts(lengths, leads, ends, seq_len)
        for row, prompt, response in zip(rows, prompts, responses, strict=True):
            assert cuts(*row, seq_len) == (prompt, response)
            assert prompt + response >= max(0, row[0] - seq_len)


def test_a_special_token_spelled_in_text_stays_text(plain: Template) -> None:
    end = "<|endoftext|>"
    ids = one(plain, Segment(f"a{end}", False), Segment(f"{end}b", True), END).input_ids
    assert list(ids).count(plain.tokenizer.eos_token_id) == 1
    assert ids[-1] == plain.tokenizer.eos_token_id


def test_no_token_spans_prompt_and_response() -> None:
    """With a BPE that knows ": hi" as one token, the border still separates tokens."""
    from raysft.data import demo

    records = [{"instruction": "x", "input": "", "output": "a: hi a: hi a: hi"}]
    template = install_template(demo.train_tokenizer(records, vocab_size=300), "plain")
    whole = template.tokenizer("a: hi", add_special_tokens=False)["input_ids"]
    example = one(template, Segment("a:", False), Segment(" hi", True))
    assert len(whole) < 4
    assert parts(template, example) == ("a:", " hi")
