"""`raysft bench data-size`: what more records buy."""

from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.studies.data_size.report import STUDY
from raysft.verbs import plan
from raysft.verbs.studies import study_verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.data_size.run import FEWEST, check

    check(config)  # raises UserError where nothing could be compared
    bench = config.bench
    listed = (
        ", ".join(f"{size:,}" for size in sorted(set(bench.data_sizes)))
        if bench.data_sizes
        else f"{FEWEST:,} and doubling, up to all"
    )
    return [
        plan.model_equation(config),
        ("steps", plan.steps_equation(config) + ", and as many epochs as of the most records"),
        *plan.where_and_how(config),
        ("records", f"{listed}; {bench.seeds} subsets of each"),
    ]


def measure(inputs: "Inputs", emit: Emit) -> dict[str, Any]:
    from raysft.studies.data_size.run import run

    return run(inputs, emit)


DATA_SIZE = study_verb(
    STUDY,
    "What more training records buy, at equal steps and at equal epochs.",
    equations,
    measure,
)
