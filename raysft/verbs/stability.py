"""`raysft bench stability`: up to which learning rate training holds, and what changes that."""

from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.studies.stability.report import STUDY
from raysft.verbs import plan
from raysft.verbs.studies import study_verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.point_runs import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.stability.run import check, points, rates

    check(config)  # raises UserError where nothing could be compared
    bench, ladders, listed = config.bench, len(points(config)), rates(config)
    most = f"{ladders} x {len(listed)} = {ladders * len(listed)} runs"
    values = (bench.warmup_ratios, bench.max_grad_norms, bench.precisions)
    counts = [len(set(of_one)) for of_one in values]
    return [
        plan.model_equation(config),
        ("steps", plan.steps_equation(config) + f", in each of at most {most}"),
        *plan.where_and_how(config),
        ("rates", ", ".join(f"{lr:g}" for lr in listed) + ", until one diverges"),
        (
            "ladders",
            f"{ladders} = {counts[0]} warmups x {counts[1]} clippings x {counts[2]} precisions x "
            f"{bench.seeds} seeds",
        ),
    ]


def measure(inputs: "Inputs", emit: Emit) -> dict[str, Any]:
    from raysft.studies.stability.run import run

    return run(inputs, emit)


STABILITY = study_verb(
    STUDY,
    "Up to which learning rate training holds, by warmup, clipping and precision, and why.",
    equations,
    measure,
)
