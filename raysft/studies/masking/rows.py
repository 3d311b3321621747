"""The cases of results.json by weight: means over seeds with intervals, and paired differences."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raysft.studies.statistics import Interval, interval
from raysft.studies.study import Case, Results, done


class Row(NamedTuple):
    """One weight over the seeds, at the end of training. None: there is nothing to tell it from."""

    weight: float
    answers: Interval  # held-out loss of the answers, nats a token
    instructions: Interval | None  # of the prompts
    exact_match: Interval | None
    share: Interval | None  # of the gradient's norm, from the prompts' tokens at this weight
    cosine: Interval | None  # between the gradients of the prompts' and the answers' losses
    copied: Interval | None  # share of an answer that is one run of its own instruction
    by_chance: Interval | None  # the same with another's instruction


def weights_of(results: Results) -> list[float]:
    return sorted({case["weight"] for case in done(results)})


def last(case: Case) -> Mapping[str, Any]:
    """What was measured after the last step."""
    found: Mapping[str, Any] = case["measured"][-1]
    return found


def loss(case: Case) -> float:
    return float(last(case)["eval_loss"])


def instruction_loss(case: Case) -> float | None:
    found: float | None = last(case)["eval_instruction_loss"]
    return found


def exact_match(case: Case) -> float | None:
    found: float | None = case["exact_match"]
    return found


def share(case: Case) -> float | None:
    """w |p| / (|a| + w |p|), where the gradient is a + w p."""
    answers, prompts = (math.sqrt(last(case)[f"{name}_square"]) for name in ("answer", "prompt"))
    whole = answers + case["weight"] * prompts
    return case["weight"] * prompts / whole if whole else None


def cosine(case: Case) -> float | None:
    squares = last(case)["answer_square"] * last(case)["prompt_square"]
    return last(case)["product"] / math.sqrt(squares) if squares else None


def copied(case: Case) -> float | None:
    return case["copied"] and float(case["copied"]["answers"])


def by_chance(case: Case) -> float | None:
    return case["copied"] and float(case["copied"]["answers_by_chance"])


def copied_beyond_chance(case: Case) -> float | None:
    found = case["copied"]
    return found and float(found["answers"] - found["answers_by_chance"])


def references_beyond_chance(results: Results) -> float | None:
    """How much of the references is copied: the same for all weights and seeds."""
    found = next((case["copied"] for case in done(results) if case["copied"]), None)
    return found and float(found["references"] - found["references_by_chance"])


def over_seeds(cases: list[Case], value: Callable[[Case], float | None]) -> Interval | None:
    found = [value(case) for case in cases]
    known = [one for one in found if one is not None]
    return interval(known) if known and len(known) == len(found) else None


def rows_of(results: Results) -> list[Row]:
    """By weight, the least first."""
    rows = []
    for weight in weights_of(results):
        cases = [case for case in done(results) if case["weight"] == weight]
        rows.append(
            Row(
                weight,
                interval([loss(case) for case in cases]),
                *(
                    over_seeds(cases, value)
                    for value in (instruction_loss, exact_match, share, cosine, copied, by_chance)
                ),
            )
        )
    return rows


def difference(
    results: Results, weight: float, base: float, value: Callable[[Case], float | None]
) -> Interval | None:
    """Of a weight to another, paired by seed: what the seed does to both is not in the interval."""
    by_seed = {(case["weight"], case["seed"]): value(case) for case in done(results)}
    pairs = [
        (found, by_seed[base, seed])
        for (at, seed), found in by_seed.items()
        if at == weight and (base, seed) in by_seed
    ]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return interval(known) if known and len(known) == len(pairs) else None
