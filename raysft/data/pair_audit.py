"""What the audit tells of preference pairs, besides what it tells of any record."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Share of pairs whose longer answer is the chosen one (or the rejected one) from which on a model
# that counts tokens is right so often that it is worth telling.
LENGTH_BIAS = 0.65


def pair_facts(records: NDArray[Any]) -> dict[str, Any]:
    """Plain numbers about R pairs. `chosen_longer` is the accuracy of who prefers the longer
    answer, an equal length counting half."""
    chosen, rejected = records["answers"], records["rejected_answer"]
    longer = (chosen > rejected) + 0.5 * (chosen == rejected)
    keys = [records[name].tolist() for name in ("chosen_key", "rejected_key")]
    forwards, backwards = zip(*keys, strict=True), set(zip(*reversed(keys), strict=True))
    return {
        "chosen_longer": float(longer.mean()) if len(records) else None,
        "only_length": int(records["prefix"].sum()),
        "both_directions": sum(pair in backwards for pair in forwards),
        "with_margin": int((records["margin"] != 0).sum()),
        "negative_margin": int((records["margin"] < 0).sum()),
    }


def pair_findings(facts: dict[str, Any], count: int) -> list[tuple[str, int, str, str]]:
    """(name, pairs, message, advice) of what is there."""
    share = facts["chosen_longer"] or 0.5
    word = "longer" if share > 0.5 else "shorter"
    share = max(share, 1 - share)
    biased = share >= LENGTH_BIAS and count >= 20
    table = [
        ("both_directions", facts["both_directions"],
         "the same two answers are there the other way round as well, which teaches nothing",
         "keep one of the two, or neither"),
        ("negative_margin", facts["negative_margin"],
         "the scores say that the rejected answer is the better one",
         "exchange chosen and rejected, or remove the pair"),
        ("only_length", facts["only_length"],
         "one answer is the beginning of the other, so that only their length differs",
         "see whether that is what the model should learn"),
        ("length_bias", round(share * count) if biased else 0,
         f"the {word} answer is the chosen one in {share:.0%} of the pairs: a model that counts "
         "tokens would be as right",
         "add pairs in which it is the other way round, or compare with this share"),
    ]  # fmt: skip
    return [row for row in table if row[1]]


def halves(records: NDArray[Any]) -> NDArray[Any]:
    """[2R], a row a conversation, with the columns that say what is cut of it."""
    two = np.concatenate([records, records])
    two["full_length"] = np.concatenate(
        [records["lead"] + records["answers"], records["lead"] + records["rejected_answer"]]
    )
    return two
