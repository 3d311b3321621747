"""`raysft bench masking`: what the weight of the prompts' tokens in the loss does."""

from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.studies.masking.report import STUDY
from raysft.verbs import plan
from raysft.verbs.studies import study_verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.masking.run import check, points

    check(config)  # raises UserError where nothing could be compared
    listed, bench = points(config), config.bench
    weights = ", ".join(f"{weight:g}" for weight in sorted(set(bench.prompt_loss_weights)))
    return [
        plan.model_equation(config),
        ("steps", plan.steps_equation(config) + f", in each of {len(listed)} runs"),
        *plan.where_and_how(config),
        ("weights", f"{weights}; {bench.seeds} seeds of each"),
    ]


def measure(inputs: "Inputs", emit: Emit) -> dict[str, Any]:
    from raysft.studies.masking.run import run

    return run(inputs, emit)


MASKING = study_verb(
    STUDY,
    "What training on the prompts does to answers, by the weight of their tokens in the loss.",
    equations,
    measure,
)
