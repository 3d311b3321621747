"""`raysft bench seq-len`: what the sequence length costs."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from raysft.runs.events import Emit
from raysft.studies.seq_len.report import STUDY
from raysft.verbs import plan
from raysft.verbs.resume import how_to_resume
from raysft.verbs.settle import settled
from raysft.verbs.studies import check_resume, done, has_left
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.studies.seq_len.run import Inputs


def equations(config: "Config") -> list[tuple[str, str]]:
    from raysft.studies.seq_len.cases import TABLES, cases, longest

    longest(config)  # raises UserError where the model has no such positions
    listed, bench = cases(config), config.bench
    rows = [plan.model_equation(config), *plan.where_and_how(config)]
    for table in TABLES:
        words = [f"{c.sequences} x {c.seq_len:,}" for c in listed if table in c.tables]
        rows.append((f"equal {table}", ", ".join(words)))
    steps = f"{bench.warmup_steps} + {bench.steps} steps"
    rows.append(("cases", f"{len(listed)}, each in fresh workers: {steps}"))
    return rows


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.studies.seq_len.cases import longest
    from raysft.studies.seq_len.run import Inputs, run
    from raysft.verbs.inputs import beside_ray, read_inputs, read_model

    def read(ray_is_there: Callable[[], None]) -> "Inputs":
        if config.bench.synthetic:
            template, hf_config = read_model(longest(config), emit)
            return Inputs(config, hf_config, template.tokenizer, None, run_dir)
        inputs = read_inputs(longest(config), run_dir, emit, ray_is_there)
        records = inputs.prepared.train
        return Inputs(config, inputs.hf_config, inputs.template.tokenizer, records, run_dir)

    inputs = beside_ray(config, emit, read)
    chosen = settled(longest(config), inputs.hf_config, run_dir, emit)
    return run(replace(inputs, config=chosen), emit)


def inputs(config: "Config") -> tuple["Config", bool]:
    from raysft.studies.seq_len.cases import longest

    return longest(config), not config.bench.synthetic


def tables(summary: Summary, results: Results | None) -> Iterable[RenderableType]:
    return STUDY.tables(results) if results and summary["status"] == "done" else ()


SEQ_LEN = Verb(
    name="bench seq-len",
    help="What the sequence length costs in time and memory, measured and predicted.",
    example="raysft bench seq-len bench-seq-len --name lengths",
    plan=equations,
    run=run,
    has_left=has_left,
    check_resume=check_resume,
    done=done,
    interrupted=how_to_resume("the first case", "with the cases that are left"),
    tables=tables,
    inputs=inputs,
    study=STUDY,
)
