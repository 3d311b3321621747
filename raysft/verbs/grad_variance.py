"""`raysft bench grad-variance`: how noisy gradients are, over the sequence length."""

from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.studies.grad_variance.report import STUDY
from raysft.verbs import plan
from raysft.verbs.studies import study_verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.grad_variance.run import check, point_config, points

    check(config)  # raises UserError where there would be nothing to measure
    listed, bench = points(config), config.bench
    point_config(config, listed[0])  # the same where the model or a pack has no such room
    lengths = ", ".join(f"{length:,}" for length in sorted(bench.seq_lens))
    return [
        plan.model_equation(config),
        ("steps", plan.steps_equation(config) + f", in each of {len(listed)} runs"),
        *plan.where_and_how(config),
        ("measured", f"{bench.examples} sequences of {lengths} tokens, three times a run"),
    ]


def measure(inputs: "Inputs", emit: Emit) -> dict[str, Any]:
    from raysft.studies.grad_variance.run import run

    return run(inputs, emit)


GRAD_VARIANCE = study_verb(
    STUDY,
    "How the variance of the gradient depends on the sequence length, and what batch follows.",
    equations,
    measure,
)
