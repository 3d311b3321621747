"""Tests for the embedded demo data: its generator, its answer checker and its tokenizer."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from raysft.data import demo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Answers worked out by hand, at least one for each family and every way a record can look.
BY_HAND = [
    ("count", "Count key from 8 to 11.", "", "key 8, key 9, key 10, key 11"),
    ("count", "List rose 1 up to 4.", "", "rose 1, rose 2, rose 3, rose 4"),
    ("count", "Write hat with numbers 3 to 6.", "", "hat 3, hat 4, hat 5, hat 6"),
    ("measure", "Measure the words.", "river jar lamp", "river 5, jar 3, lamp 4"),
    ("measure", "Count the letters.", "violin key horse", "violin 6, key 3, horse 5"),
    ("number", "Number the words.", "moon hat seed", "1. moon\n2. hat\n3. seed"),
    ("repeat", "Say this 3 times.", "rose cake", "rose cake, rose cake, rose cake"),
    ("reverse", "Reverse the words.", "tree desk apple moon", "moon apple desk tree"),
    ("sort", "Go from A to Z.", "drum chair desk cake", "cake chair desk drum"),
    ("sort", "Sort the words.", "rose river hat", "hat river rose"),
]


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    return demo.generate(1200, seed=3)


@pytest.fixture(scope="module")
def tokenizer(records: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    return demo.train_tokenizer(records)


def prompt_of(record: dict[str, str]) -> str:
    lines = [record["instruction"], record["input"]] if record["input"] else [record["instruction"]]
    return "".join(f"{line}\n" for line in lines)


def test_same_seed_gives_the_same_records_and_another_seed_does_not() -> None:
    assert demo.generate(300, seed=5) == demo.generate(300, seed=5)
    assert demo.generate(300, seed=5) != demo.generate(300, seed=6)


def test_a_larger_set_starts_with_the_smaller_one() -> None:
    assert demo.generate(300)[:120] == demo.generate(120)


def test_records_do_not_depend_on_the_hash_seed() -> None:
    program = "from raysft.data import demo; print(demo.generate(40, seed=9))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{demo.generate(40, seed=9)}\n"


def test_records_are_alpaca_records_in_ascii(records: list[dict[str, str]]) -> None:
    for record in records:
        assert list(record) == ["instruction", "input", "output"]
        assert all(text.isascii() and text == text.strip() for text in record.values())
        assert record["instruction"]
        assert record["output"]


def test_no_question_occurs_twice_even_in_other_words(records: list[dict[str, str]]) -> None:
    assert len({(record["instruction"], record["input"]) for record in records}) == len(records)
    # Family, input and answer together are the whole question, whatever the phrasing.
    questions = Counter(
        (demo.family_of(record), record["input"], record["output"]) for record in records
    )
    assert max(questions.values()) == 1


def test_all_families_and_phrasings_are_drawn_about_equally(records: list[dict[str, str]]) -> None:
    families = Counter(demo.family_of(record) for record in records)
    assert set(families) == set(demo.PHRASINGS)
    assert min(families.values()) > len(records) / len(demo.PHRASINGS) * 0.7
    # A phrasing without fields is used word for word.
    used = {record["instruction"] for record in records}
    fixed = {text for texts in demo.PHRASINGS.values() for text in texts if "{" not in text}
    assert fixed <= used


@pytest.mark.parametrize(("family", "instruction", "text", "answer"), BY_HAND)
def test_hand_computed_answers(family: str, instruction: str, text: str, answer: str) -> None:
    record = {"instruction": instruction, "input": text, "output": "not looked at"}
    assert demo.family_of(record) == family
    assert demo.is_correct(record, answer)
    assert demo.is_correct(record, f"  {answer}\n")
    assert not demo.is_correct(record, record["output"])


def test_every_output_is_judged_correct(records: list[dict[str, str]]) -> None:
    assert all(demo.is_correct(record, record["output"]) for record in records)


def test_corrupted_outputs_are_judged_wrong(records: list[dict[str, str]]) -> None:
    source = random.Random(0)
    for record in records:
        words = record["output"].split(" ")
        drop = source.randrange(len(words))
        swapped = [words[1], words[0], *words[2:]]
        wrong_answers = [
            " ".join(words[:drop] + words[drop + 1 :]),
            " ".join(swapped),
            record["output"][:-1],
            " ".join(words[:-1]),
            f"{record['output']} {words[-1]}",
            record["output"].upper(),
            "",
        ]
        for wrong in wrong_answers:
            assert not demo.is_correct(record, wrong), (record, wrong)


def test_an_unknown_instruction_is_refused() -> None:
    record = {"instruction": "Translate the words.", "input": "moon", "output": "luna"}
    with pytest.raises(ValueError, match="Translate"):
        demo.is_correct(record, "luna")


def test_importing_the_module_needs_only_the_standard_library() -> None:
    program = (
        "import sys; from raysft.data import demo; demo.generate(5); "
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_responses_are_longer_than_prompts(
    records: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt_tokens = sum(len(tokenizer.encode(prompt_of(record))) for record in records)
    response_tokens = sum(len(tokenizer.encode(record["output"])) + 1 for record in records)
    assert response_tokens > prompt_tokens


def test_tokenizer_round_trips_text_and_has_one_eos_id(
    records: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [prompt_of(record) + record["output"] for record in records]
    for text in [*texts, " two  blanks , and\ttabs .", "caf\u00e9 \u2603 it's"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == demo.END_OF_TEXT
    assert tokenizer.encode(demo.END_OF_TEXT) == [tokenizer.eos_token_id]
    assert tokenizer.encode("moon" + demo.END_OF_TEXT)[-1] == tokenizer.eos_token_id
    assert 256 < len(tokenizer) <= 768


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in demo.WORDS:
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f" {word}")) == 1


def test_training_the_tokenizer_again_gives_the_same_one(
    records: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast
) -> None:
    again = demo.train_tokenizer(iter(records))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(demo.train_tokenizer(records, vocab_size=300)) == 300
