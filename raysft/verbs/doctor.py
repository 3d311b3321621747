"""`raysft doctor`: is this machine or cluster ready, with or without the proof."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.verbs.verb import Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def runs(*, prove: bool) -> Callable[["Config", Path, Emit], dict[str, Any]]:
    def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:  # noqa: ARG001
        from raysft.doctor.examine import examine

        return examine(config, emit, prove=prove)

    return run


def done(summary: Summary) -> str:
    warned = sum(check["status"] == "warn" for check in summary["checks"])
    warnings = f", {warned} of them with a warning" if warned else ""
    return f"ready: {len(summary['checks'])} checks passed{warnings}"


def make(name: str, help: str, *, prove: bool) -> Verb:
    return Verb(
        name=name,
        help=help,
        example=f"raysft {name}",
        plan=lambda _config: [],
        run=runs(prove=prove),
        has_left=lambda _run_dir: False,
        check_resume=None,
        done=done,
        interrupted=lambda _summary: "interrupted; ask again for all of it",
        tables=lambda _summary, _results: (),
        is_elastic=True,
        is_a_run=False,
    )


DOCTOR = make("doctor", "Is this machine or cluster ready, and if not, what to do.", prove=False)
PROVE = make("doctor --prove", "The same, and tiny models against plain PyTorch.", prove=True)
