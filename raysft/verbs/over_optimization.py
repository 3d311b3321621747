"""`raysft bench over-optimization`: how far a learned reward can be followed."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.studies.over_optimization.report import STUDY
from raysft.verbs import ppo
from raysft.verbs.studies import study_verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.over_optimization.run import check, points

    check(config)  # raises UserError where nothing could be compared
    listed, bench = points(config), config.bench
    betas = ", ".join(f"{beta:g}" for beta in sorted(set(bench.betas)))
    rows = dict(ppo.equations(config))
    rows["objective"] = "E[r] - beta KL(pi, ref); ref: the model at the start"
    rows["steps"] += f", in each of {len(listed)} runs"
    return [*rows.items(), ("watched", str(config.ppo.checker)),
            ("betas", f"{betas}; {bench.seeds} seeds of each")]  # fmt: skip


def measure(inputs: "Inputs", emit: Emit) -> dict[str, Any]:
    from raysft.studies.over_optimization.run import run

    config = ppo.for_answers(inputs.config)
    found = {"ppo": ppo.with_places(config.ppo)}
    return run(replace(inputs, config=config.model_copy(update=found)), emit)


OVER_OPTIMIZATION = replace(
    study_verb(
        STUDY,
        "How far a learned reward can be followed before what was wanted falls, by beta.",
        equations,
        measure,
        draws=True,
    ),
    example="raysft bench over-optimization bench-over-optimization --name far",
    check=ppo.check,
)
