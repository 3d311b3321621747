"""What the sequence length costs: the real training step at several lengths, in fresh workers."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import OutOfMemory, RunError
from raysft.estimate.families import FAMILIES, Dims, dims_of_family
from raysft.estimate.memory import memory_gib
from raysft.estimate.shape import flops, parameters
from raysft.runs import events, rundir
from raysft.runs.events import Emit, Event
from raysft.runtime.fit import fit
from raysft.studies.pace import Pace
from raysft.studies.results import finished, header, write
from raysft.studies.seq_len.cases import Case, case_config, cases
from raysft.studies.seq_len.report import STUDY
from raysft.studies.seq_len.sequences import joined, rows_of, synthetic

DONE, OUT_OF_MEMORY = "done", "out of memory"  # how a case ends that need not run again


@dataclass(frozen=True)
class Inputs:
    """What all cases share."""

    config: Config
    hf_config: Any
    tokenizer: Any
    records: TokenDataset | None  # none: synthetic
    run_dir: Path


def run(inputs: Inputs, emit: Emit) -> dict[str, Any]:
    """The whole study, on the Ray cluster this process is connected to. Returns its summary.

    results.json is written after every case, so that what has ended is kept whatever comes. Those
    that it has already are not run again, but where they failed.
    """
    listed, before = cases(inputs.config), finished(inputs.run_dir, (DONE, OUT_OF_MEMORY))
    known = {(case["seq_len"], case["sequences"]) for case in before}
    left = [case for case in listed if (case.seq_len, case.sequences) not in known]
    results = header(STUDY.name, inputs.run_dir, title(inputs)) | {"cases": before}
    for result in run_cases(inputs, left, len(before), emit):
        measured = [*results["cases"], result]
        results["cases"] = sorted(measured, key=lambda one: (one["seq_len"], one["sequences"]))
        write(inputs.run_dir, results)
    STUDY.write_report(results, inputs.run_dir)
    return {
        "results": str(inputs.run_dir / rundir.RESULTS),
        "report": str(inputs.run_dir / rundir.REPORT),
        "verdict": STUDY.verdict(results),
        "cases": {
            status: sum(case["status"] == status for case in results["cases"])
            for status in (DONE, OUT_OF_MEMORY, "failed")
        },
    }


def title(inputs: Inputs) -> str:
    config, dims = inputs.config, dims_of_family(inputs.hf_config.to_dict())
    scaling = config.scaling
    what = str(config.model.path or "a model")
    if dims is not None:
        count = sum(parameters(dims).values())
        family = FAMILIES[inputs.hf_config.model_type].name
        what = f"{family} of {dims.n_layer} layers and width {dims.n_embd} ({count / 1e6:,.0f} M)"
    device = "GPU" if config.on_gpu else "CPU"
    return (
        f"{what}, ZeRO-{config.engine.zero_stage}, {config.engine.precision}, "
        f"{scaling.words}, {device}"
    )


def run_cases(
    inputs: Inputs, left: Sequence[Case], before: int, emit: Emit
) -> Iterator[dict[str, Any]]:
    """The result of each case as it ends; one that fails is a result like any other. before: the
    number of those that had ended already."""
    pace = Pace(before, len(left), at_once=1)
    emit(pace.after(0))
    for number, case in enumerate(left, start=before + 1):
        words = f"{case.sequences} sequences of {case.seq_len} tokens a step"
        emit(events.Status(f"case {number} of {before + len(left)}: {words}"))
        result = run_case(inputs, case)
        emit(events.Case(result))
        emit(pace.after(1))
        yield result


def run_case(inputs: Inputs, case: Case) -> dict[str, Any]:
    config = case_config(inputs.config, case)
    data = sequences(inputs, case)
    seen: list[Event] = []
    outcome: dict[str, Any] = {"status": DONE, "error": None, "peak": None}
    folder = inputs.run_dir / "cases" / f"{case.seq_len}-{case.sequences}"
    nothing = rows_of(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.bool_))
    try:
        result = fit(
            config, data, nothing, inputs.hf_config, inputs.tokenizer, folder, seen.append,
            exports=False,
        )  # fmt: skip
        outcome["peak"] = result.totals["peak"]
    except OutOfMemory as error:
        outcome |= {"status": OUT_OF_MEMORY, "error": str(error)}
    except RunError as error:
        outcome |= {"status": "failed", "error": str(error)}
    lines = [event.values for event in seen if isinstance(event, events.Metrics)]
    steps: list[Any] = [line for line in lines if "step_time_s" in line]
    times = [step["step_time_s"] for step in steps]
    warmup = config.bench.warmup_steps
    workers = next((event for event in seen if isinstance(event, events.Workers)), None)
    return {
        **asdict(case),
        "tokens": case.tokens,
        "supervised_tokens": float(data.supervised.mean()) * case.sequences,
        "workers": config.scaling.most,
        **outcome,
        "warmup_times_s": times[:warmup],
        "step_times_s": times[warmup:],
        "peak_memory_gib": max((s["peak_memory_gib"] for s in steps), default=None),
        "memory_gib": workers and workers.memory_gib,
        "observed": workers and workers.observed,
        "products": workers and workers.products,
        "predicted": predicted(inputs, config, case, data),
    }


def sequences(inputs: Inputs, case: Case) -> TokenDataset:
    config = inputs.config
    count = case.sequences * (config.bench.warmup_steps + config.bench.steps)
    if inputs.records is None:
        return synthetic(inputs.hf_config.vocab_size, case.seq_len, count, config.run.seed)
    return joined(inputs.records, case.seq_len, count, config.run.seed)


def predicted(
    inputs: Inputs, config: Config, case: Case, data: TokenDataset
) -> dict[str, Any] | None:
    """FLOPs of a step and memory of a worker, by part; None where the model is no GPT-2."""
    dims: Dims | None = dims_of_family(inputs.hf_config.to_dict())
    if dims is None:
        return None
    supervised = float(data.supervised.mean()) * case.sequences
    return {
        "flops": flops(dims, case.tokens, case.tokens * case.seq_len, supervised),
        "memory_gib": memory_gib(config, dims),
    }
