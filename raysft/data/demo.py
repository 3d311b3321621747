"""The embedded demo data: small word tasks whose answers a program can check.

The set needs no network and no files. A record sets one of six tasks on a few common words: easy
enough that a tiny model trained from scratch learns them in about a minute, yet with far more
possible questions than training records, so a model that only memorised would fail on the
held-out ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_KEYS = ("instruction", "input", "output")

# Few and short words: each soon becomes a single token, and the model meets each often enough to
# learn its spelling, length and place in the alphabet. Several share a first letter, so sorting
# takes more than comparing initials.
_WORD_LIST = """
    apple bird cake chair desk drum fish grape hat horse jar key
    lamp leaf moon ocean pear queen river rose seed tree violin window
"""
WORDS = tuple(_WORD_LIST.split())

# Every instruction is one of these phrasings with its {fields} filled in. Solving goes the other
# way: the phrasing that matches an instruction tells its family and the fields.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "count": (
        "Count {word} from {first} to {last}.",
        "List {word} {first} up to {last}.",
        "Write {word} with numbers {first} to {last}.",
    ),
    "measure": ("Measure the words.", "Give the length of each word.", "Count the letters."),
    "number": ("Number the words.", "Make a numbered list.", "Put a number before each word."),
    "repeat": ("Repeat {times} times.", "Say this {times} times.", "Make {times} copies."),
    "reverse": ("Reverse the words.", "Write the words backwards.", "Go from last to first."),
    "sort": ("Sort the words.", "Use alphabetical order.", "Go from A to Z."),
}

# For each phrasing, its family and an expression with one named group per field; re.escape has
# put a backslash before each brace by the time the fields are looked for.
_PATTERNS = [
    (family, re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(phrasing))))
    for family, phrasings in PHRASINGS.items()
    for phrasing in phrasings
]


def _parse(instruction: str) -> tuple[str, dict[str, str]]:
    """Return the family an instruction belongs to and the values of its fields."""
    for family, pattern in _PATTERNS:
        match = pattern.fullmatch(instruction)
        if match:
            return family, match.groupdict()
    raise ValueError(f"not an instruction of the demo set: {instruction!r}")


def family_of(record: Mapping[str, str]) -> str:
    """Name the task family of a record (a key of PHRASINGS), to report accuracy by family."""
    return _parse(record["instruction"])[0]


def solve(instruction: str, text: str) -> str:
    """Work out the answer to an instruction about ``text``, the record's input."""
    family, fields = _parse(instruction)
    words = text.split()
    if family == "measure":
        return ", ".join(f"{word} {len(word)}" for word in words)
    if family == "number":
        return "\n".join(f"{place}. {word}" for place, word in enumerate(words, start=1))
    if family == "repeat":
        return ", ".join([text] * int(fields["times"]))
    if family == "reverse":
        return " ".join(reversed(words))
    if family == "sort":
        return " ".join(sorted(words))
    # Only counting is left: _parse returns no other family.
    numbers = range(int(fields["first"]), int(fields["last"]) + 1)
    return ", ".join(f"{fields['word']} {number}" for number in numbers)


def _draw(family: str, source: random.Random) -> tuple[list[str], dict[str, str]]:
    """Draw the input words and the instruction's fields for one question of a family."""
    if family == "count":
        first = source.randint(1, 20)
        last = first + source.randint(3, 7)
        return [], {"word": source.choice(WORDS), "first": str(first), "last": str(last)}
    if family == "repeat":
        return source.sample(WORDS, 2), {"times": str(source.randint(3, 8))}
    # No word twice in a list: what follows a word in the answer is then settled by that word.
    return source.sample(WORDS, source.randint(3, 5)), {}


def generate(num_records: int, seed: int = 0) -> list[dict[str, str]]:
    """Draw ``num_records`` Alpaca records (instruction, input, output) of all families, mixed.

    The same arguments always give the same records. No question occurs twice, not even in another
    phrasing, so any split of the list keeps the held-out questions out of training.
    """
    source = random.Random(seed)
    families = tuple(PHRASINGS)
    asked: set[tuple[str, ...]] = set()
    records: list[dict[str, str]] = []
    while len(records) < num_records:
        family = source.choice(families)
        words, fields = _draw(family, source)
        phrasing = source.choice(PHRASINGS[family])
        question = (family, *words, *fields.values())
        if question in asked:
            continue
        asked.add(question)
        instruction = phrasing.format_map(fields)
        text = " ".join(words)
        output = solve(instruction, text)
        records.append({"instruction": instruction, "input": text, "output": output})
    return records


def is_correct(record: Mapping[str, str], answer: str) -> bool:
    """Tell whether ``answer``, less outer white space, is the right answer to a record.

    The task is solved again from instruction and input; the record's own output is not looked at.
    """
    return answer.strip() == solve(record["instruction"], record["input"])


def train_tokenizer(
    records: Iterable[Mapping[str, str]], vocab_size: int = 768
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the records, with "<|endoftext|>" as its eos token.

    ``vocab_size`` is an upper bound in tokens: training stops earlier once every word of the
    records is one token, so size the model by ``len(tokenizer)``.
    """
    # Imported here so that generating and checking records need only the standard library.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, seen or not, so that any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("\n".join(record[key] for key in _KEYS) for record in records)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)
