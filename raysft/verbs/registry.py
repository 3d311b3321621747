"""What each verb does in its job: from a config to the rest of its summary."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.events import Emit, Event, without
from raysft.runtime.connect import EMBEDDED, local_resources, shut_down_ray, start_ray_beside
from raysft.runtime.resources import require_resources

if TYPE_CHECKING:
    from raysft.data.dataset import Prepared
    from raysft.data.template import Template

T = TypeVar("T")


class Inputs(NamedTuple):
    template: "Template"
    hf_config: Any
    prepared: "Prepared"
    facts: dict[str, Any]  # of the audit


def beside_ray(config: Config, emit: Emit, read: Callable[[Callable[[], None]], T]) -> T:
    """Read the inputs while Ray starts. `read` gets a function that waits for Ray.

    A mistake is told at once: ending the half-started Ray takes seconds.
    """

    def read_or_tell(ray_is_there: Callable[[], None]) -> T:
        try:
            return read(ray_is_there)
        except UserError as error:
            emit({"event": "mistake", "message": str(error)})
            raise

    if EMBEDDED:
        require_resources(config, [local_resources(config)])
    emit({"event": "status", "message": "starting Ray"})
    return start_ray_beside(config, read_or_tell)


def read_model(config: Config, emit: Emit) -> tuple["Template", Any]:
    """Tokenizer and model config. Raises UserError."""
    from raysft.model.load import load_model_config, load_template

    emit({"event": "status", "message": f"loading tokenizer {config.model.tokenizer_path}"})
    template = load_template(config)
    return template, load_model_config(config, template)


def read_inputs(config: Config, emit: Emit, ray_is_there: Callable[[], None]) -> Inputs:
    """Tokenizer, model config and data. Raises UserError."""
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare

    template, hf_config = read_model(config, emit)
    emit({"event": "status", "message": "reading data"})
    prepared = prepare(config, template, ray_is_there)
    facts = audit(config, template, prepared)
    emit({"event": "data", **facts})
    from raysft.model import answers  # noqa: F401 (imported here while Ray starts)
    from raysft.runtime import fit  # noqa: F401 (imported here while Ray starts)

    return Inputs(template, hf_config, prepared, facts)


def train(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    template, hf_config, prepared, facts = beside_ray(
        config, emit, lambda ray_is_there: read_inputs(config, emit, ray_is_there)
    )
    from raysft.model.answers import finish_model
    from raysft.runtime import fit

    emit({"event": "status", "message": "starting workers"})
    observed: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def keep(event: Event) -> None:
        if event["event"] == "workers":
            observed.update(without(event, "event"))
        if event["event"] == "metrics" and "loss" in event:
            last.update(event)
        emit(event)

    result = fit.fit(
        config, prepared.train, prepared.heldout, hf_config, template.tokenizer, run_dir, keep
    )
    shut_down_ray()
    emit({"event": "status", "message": "writing answers to held-out records"})
    answers = finish_model(config, run_dir / rundir.MODEL, prepared.heldout, emit)
    return {
        "model_dir": str(run_dir / rundir.MODEL),
        "num_restarts": result.num_restarts,
        "restarts": result.restarts,
        "num_records": facts["num_records"],
        "num_eval_records": facts["num_eval_records"],
        "num_dropped": facts["num_dropped"],
        "steps": result.totals["step"],
        **without(result.totals, "step"),
        "peak_memory_gib": last.get("peak_memory_gib"),
        **answers,
        "data": facts,
        "workers": observed,
    }


def bench_seq_len(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.studies.seq_len.run import Study, longest, run

    def read(ray_is_there: Callable[[], None]) -> Study:
        if config.bench.synthetic:
            template, hf_config = read_model(longest(config), emit)
            return Study(config, hf_config, template.tokenizer, None, run_dir)
        inputs = read_inputs(longest(config), emit, ray_is_there)
        records = inputs.prepared.train
        return Study(config, inputs.hf_config, inputs.template.tokenizer, records, run_dir)

    return run(beside_ray(config, emit, read), emit)


def tune(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.studies.tune.trials import read_before

    before = read_before(run_dir)
    inputs = beside_ray(config, emit, lambda ray_is_there: read_inputs(config, emit, ray_is_there))
    from raysft.data.dataset import epoch_length
    from raysft.runtime import fit
    from raysft.studies.tune import search
    from raysft.studies.tune.trial import Study, replay

    data = inputs.prepared
    if not len(data.heldout):
        raise UserError(
            "trials are compared by their held-out loss, and no record is held out of so few: "
            "raise data.eval_fraction, or set data.eval_path"
        )
    study = Study(
        config=config,
        train=data.train,
        heldout=data.heldout,
        template=inputs.template,
        run_dir=run_dir.resolve(),
        stamp=rundir.read_json(run_dir / rundir.RUN)["stamp"],
        replays={trial.number: replay(trial) for trial in before if trial.finished},
    )
    emit({"event": "status", "message": "searching"})
    total_steps = fit.total_steps(config, epoch_length(data.train))
    summary = search.run(study, before, total_steps, emit)
    files = {"results": rundir.RESULTS, "report": rundir.REPORT, "best_config": rundir.BEST}
    paths = {name: str(run_dir / file) for name, file in files.items()}
    return summary | paths | {"data": inputs.facts}


def doctor(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:  # noqa: ARG001
    from raysft.doctor.examine import examine

    return examine(config, emit, prove=False)


def prove(config: Config, run_dir: Path, emit: Emit) -> dict[str, Any]:  # noqa: ARG001
    from raysft.doctor.examine import examine

    return examine(config, emit, prove=True)


VERBS: dict[str, Callable[[Config, Path, Emit], dict[str, Any]]] = {
    "train": train,
    "tune": tune,
    "bench seq-len": bench_seq_len,
    "doctor": doctor,
    "doctor --prove": prove,
}
