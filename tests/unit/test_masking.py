"""Copying and report of `bench masking`, of results whose truth is known."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.studies.masking.copying import copied_by_chance, copied_share, longest_common_run
from raysft.studies.masking.report import PAGE, PLOT, STUDY, verdict
from raysft.studies.masking.rows import copied_beyond_chance, difference, rows_of
from raysft.studies.masking.run import check, point_config, points
from raysft.studies.page import markdown

TOKENS = st.lists(st.integers(0, 3), max_size=9)


@given(TOKENS, TOKENS)
def test_the_longest_run_equals_a_search_of_all(a: list[int], b: list[int]) -> None:
    runs = {
        tuple(a[begin:end]) for begin, end in product(range(len(a)), range(len(a) + 1))
        if begin < end
    }  # fmt: skip
    there = {tuple(b[begin : begin + n]) for begin in range(len(b)) for n in range(1, len(b) + 1)}
    assert longest_common_run(a, b) == max(map(len, runs & there), default=0)


def test_a_copied_answer_is_told_from_chance() -> None:
    """Prompts of ten tokens that share their first two, as by a template."""
    prompts = [[1, 2, *range(100 * n, 100 * n + 8)] for n in range(1, 5)]
    copies = [prompt[3:8] for prompt in prompts]
    assert (copied_share(copies, prompts), copied_by_chance(copies, prompts)) == (1.0, 0.0)
    greetings = [[1, 2, 9, 9]] * 4
    assert copied_share(greetings, prompts) == copied_by_chance(greetings, prompts) == 0.5
    assert copied_share([[]], [[1, 2]]) == 0.0


def case(weight: float, seed: int, loss: float, copied: float) -> dict[str, Any]:
    end = {
        "step": 9, "eval_loss": loss, "eval_instruction_loss": 2.0,
        "answer_square": 4.0, "prompt_square": 9.0, "product": 3.0,
    }  # fmt: skip
    return {
        "weight": weight, "seed": seed, "status": "done", "error": None, "measured": [end, end],
        "records": 10, "exact_match": 0.5, "observed": None,
        "copied": {
            "answers": copied, "answers_by_chance": 0.1,
            "references": 0.3, "references_by_chance": 0.1,
        },
    }  # fmt: skip


def results(*cases: dict[str, Any]) -> dict[str, Any]:
    return {
        "study": "masking", "stamp": {"command": "raysft bench masking x"},
        "config": load_config("bench-masking").model_dump(mode="json"), "cases": list(cases),
    }  # fmt: skip


def three_seeds(copied: float, loss: float) -> dict[str, Any]:
    """Seeds differ far more than weights do: only pairs of them tell."""
    spread = [0.0, 0.2, 0.4]
    masked = [case(0.0, seed, 1.0 + s, 0.2 + s) for seed, s in enumerate(spread)]
    noise = [-0.001, 0.0, 0.001]
    unmasked = [
        case(1.0, seed, 1.0 + s + loss + n, 0.2 + s + copied + n)
        for seed, (s, n) in enumerate(zip(spread, noise, strict=True))
    ]
    return results(*masked, *unmasked)


@pytest.mark.parametrize(
    ("copied", "loss", "told"),
    [
        (0.05, 0.1, ("copy instructions is confirmed", "worse than with weight 0")),
        (
            -0.05,
            -0.1,
            ("copy instructions is refuted, for it copies less", "better than with weight 0"),
        ),
        (0.0, 0.0, ("copy instructions is not seen here", "neither better nor worse")),
    ],
)
def test_the_verdict_is_of_pairs_with_one_seed(
    copied: float, loss: float, told: tuple[str, str]
) -> None:
    found = three_seeds(copied, loss)
    assert all(part in verdict(found) for part in told)
    pairs = difference(found, 1.0, 0.0, copied_beyond_chance)
    assert pairs is not None
    assert pairs.mean == pytest.approx(copied)
    assert pairs.high is not None
    assert pairs.high - pairs.mean == pytest.approx(4.303 * 0.001 / 3**0.5)


def test_one_seed_judges_nothing() -> None:
    told = verdict(results(case(0.0, 0, 1.0, 0.2), case(1.0, 0, 1.2, 0.9)))
    assert "copy instructions is not judged by one seed" in told
    assert "nats a token, which is not judged by one seed; exact match" in told
    assert "Fewer than two weights" in verdict(results(case(0.0, 0, 1.0, 0.2)))


def test_rows_by_hand() -> None:
    rows = rows_of(results(case(0.0, 0, 1.0, 0.2), case(0.5, 0, 1.2, 0.9)))
    assert [row.weight for row in rows] == [0.0, 0.5]
    shares = [row.share and row.share.mean for row in rows]
    assert shares == [0.0, pytest.approx(1.5 / 3.5)]
    assert rows[1].cosine is not None
    assert rows[1].cosine.mean == pytest.approx(0.5)


def test_a_report_of_runs_without_answers(tmp_path: Path) -> None:
    found = three_seeds(0.0, 0.1)
    for one in found["cases"]:
        one |= {"copied": None, "exact_match": None, "records": 0}
    found["cases"].append({"weight": 0.5, "seed": 0, "status": "failed", "error": "it died"})
    STUDY.write_report(found, tmp_path)
    text = (tmp_path / rundir.REPORT).read_text()
    assert "nothing is known of copying" in text
    assert "- weight 0.5, seed 0 failed: it died" in text
    assert (tmp_path / PLOT).stat().st_size > 10_000
    assert len(list(STUDY.tables(found))) == 1
    assert "nothing to tell" in markdown(PAGE, results())


def test_points_differ_in_weight_and_seed_only() -> None:
    settings = ["bench.prompt_loss_weights=[1.0, 0.0]", "bench.seeds=2", "run.seed=5"]
    config = load_config("bench-masking", settings)
    listed = points(config)
    pairs = [(point["weight"], point["seed"]) for point in listed]
    assert pairs == [(0.0, 5), (0.0, 6), (1.0, 5), (1.0, 6)]
    made = [point_config(config, point) for point in listed]
    assert {one.run.max_steps for one in made} == {300}
    assert [one.data.prompt_loss_weight for one in made] == [0.0, 0.0, 1.0, 1.0]


def test_what_compares_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="prompt_loss_weights has one weight: take two or more"):
        check(load_config("bench-masking", ["bench.prompt_loss_weights=[0.5, 0.5]"]))
    with pytest.raises(UserError, match="no record is held out"):
        check(load_config("bench-masking", ["data.eval_fraction=0.0"]))
    with pytest.raises(UserError, match="drops gradients that overflow"):
        check(load_config("bench-masking", ["engine.precision=fp16"]))
