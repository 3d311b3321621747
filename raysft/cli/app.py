"""The command line: resolves, validates, writes run.json and hands it over. Light imports only."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raysft import __version__
from raysft.cli import cluster_commands, console
from raysft.cli.options import (
    AddressOption,
    ConfigArgument,
    DryRunOption,
    JsonOption,
    NameOption,
    ResumeOption,
    SetOption,
    ShipCodeOption,
)
from raysft.errors import RunError, UserError
from raysft.runs import rundir

app = typer.Typer(
    name="raysft",
    help="Tune GPT-2-class language models on instruction data, with DeepSpeed ZeRO-3 on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Trace a few steps and tell where their time went.")
]
PROFILE_STEPS = 5


def main() -> None:
    try:
        app()
    except (UserError, RunError) as error:
        console.error(str(error))
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"raysft {__version__}")
        raise typer.Exit()


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006 (typer reads the default, nothing changes it)
    name: NameOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    ship_code: ShipCodeOption = False,
    profile: ProfileOption = False,
) -> None:
    """Masked supervised fine-tuning: loss on response tokens only."""
    from raysft.cli.launch import launch
    from raysft.config.load import load_config

    profiled = [f"log.profile_steps={PROFILE_STEPS}"] if profile else []
    resolved = load_config(config, [*overrides, *profiled])
    launch(
        "train", config, resolved, name, resume=resume, dry_run=dry_run, as_json=as_json,
        address=address, ship_code=ship_code,
    )  # fmt: skip


class SearchByDefault(TyperGroup):
    """`raysft tune CONFIG` searches, though `tune` has other commands too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["search", *args]
        return super().parse_args(ctx, args)


tune_app = typer.Typer(
    cls=SearchByDefault, no_args_is_help=True, help="Search config keys: `raysft tune CONFIG`."
)
app.add_typer(tune_app, name="tune")


@tune_app.command("search")
def tune_search(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    name: NameOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search --name; what ended is kept.")
    ] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    ship_code: ShipCodeOption = False,
) -> None:
    """Search config keys; every trial is a real run. The word `search` may be left out."""
    from raysft.cli.launch import launch
    from raysft.config.load import load_config

    resolved = load_config(config, overrides)
    launch(
        "tune", config, resolved, name, resume=resume, dry_run=dry_run, as_json=as_json,
        address=address, ship_code=ship_code,
    )  # fmt: skip


@tune_app.command("report")
def tune_report(
    results: Annotated[Path, typer.Argument(help="A search, or its results.json.")],
) -> None:
    """Draw a search again: best.toml, trials.csv, report.md and the figures beside it."""
    from raysft.studies.tune.report import ranked_tables, write_report
    from raysft.studies.tune.trials import read_results

    file, header, trials = read_results(results)
    write_report(file.parent, header, trials)
    console.stdout.print(ranked_tables(header, trials))


data_app = typer.Typer(no_args_is_help=True, help="Look at what the data supervises.")
app.add_typer(data_app, name="data")


@data_app.command()
def preview(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    count: Annotated[int, typer.Option("-n", min=1, help="Records of each source.")] = 3,
) -> None:
    """Records as tokens: which are trained, which are prompt, special or cut."""
    from raysft.cli import data_tables
    from raysft.config.load import load_config
    from raysft.data.preview import previews
    from raysft.model.load import load_template

    resolved = load_config(config, overrides)
    template = load_template(resolved)
    for view in previews(resolved, template, count):
        data_tables.print_record(view, console.stdout)
        console.stdout.print()
    console.stderr.print(data_tables.legend())


@data_app.command()
def stats(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Audit the whole set: lengths, masks, cuts, end tokens, duplicates."""
    from raysft.cli import data_tables
    from raysft.config.load import load_config
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare
    from raysft.model.load import load_template
    from raysft.runtime.connect import shut_down_ray, start_ray

    # An audit tells of every bad record instead of stopping at the first.
    resolved = load_config(config, [*overrides, "data.on_bad_record=skip"])
    template = load_template(resolved)
    try:
        prepared = prepare(resolved, template, lambda: start_ray(resolved))
    finally:
        shut_down_ray()
    facts = audit(resolved, template, prepared)
    data_tables.print_audit(facts, console.stderr if as_json else console.stdout)
    console.findings(facts["findings"])
    if as_json:
        print(json.dumps(facts, separators=(",", ":")))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run directory or a checkpoint in it.")],
    to: Annotated[Path | None, typer.Option("--to", help="Default: RUN_DIR/model.")] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    from raysft.train.checkpoint.export import export_checkpoint

    print(export_checkpoint(run_dir, to))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Run directory, model folder or hub id.")],
    instruction: Annotated[str, typer.Argument(help="What to ask.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Answer one instruction, greedily, with the template the model was trained with."""
    from raysft.model.generate import answer, load, prompt_ids

    folder = Path(model) / rundir.MODEL if (Path(model) / rundir.RUN).exists() else Path(model)
    if (Path(model) / rundir.RUN).exists() and not folder.is_dir():
        raise UserError(f"{model} has no model yet: the run did not end; try `raysft export`")
    path = str(folder) if folder.is_dir() else model
    loaded, template = load(path)
    prompts = [prompt_ids(instruction, template)]
    print(answer(loaded, template, prompts, max_new_tokens)[0].strip())


@app.command()
def estimate(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="A known device, such as h100.")] = None,
    peak_tflops: Annotated[float | None, typer.Option(help="Its peak, TFLOP/s.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of a worker, GiB.")] = None,
    link_gbs: Annotated[float | None, typer.Option(help="Between workers, GB/s.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Memory, FLOPs, traffic and time of a run, before running it."""
    from raysft.cli.estimate_tables import renderables
    from raysft.config.load import load_config
    from raysft.estimate.report import estimate as estimate_run

    resolved = load_config(config, overrides)
    if resolved.scaling.elastic:
        fewest = resolved.scaling.fewest
        console.fact(
            "workers", f"{resolved.scaling.count}: told for {fewest}, which hold most each"
        )
        resolved = resolved.at(fewest)
    facts = estimate_run(
        resolved,
        device=device,
        peak_tflops=peak_tflops,
        memory_gib=memory_gib,
        link_gbs=link_gbs,
    )
    out = console.stderr if as_json else console.stdout
    for part in renderables(facts):
        out.print(part)
    if as_json:
        print(json.dumps(facts, separators=(",", ":")))


bench_app = typer.Typer(no_args_is_help=True, help="Measure the real training step.")
app.add_typer(bench_app, name="bench")


@bench_app.command("seq-len")
def bench_seq_len(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    name: NameOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    ship_code: ShipCodeOption = False,
) -> None:
    """What the sequence length costs in time and memory, measured and predicted."""
    from raysft.cli.launch import launch
    from raysft.config.load import load_config

    resolved = load_config(config, overrides)
    launch(
        "bench seq-len", config, resolved, name, dry_run=dry_run, as_json=as_json,
        address=address, ship_code=ship_code,
    )  # fmt: skip


ResultsArgument = Annotated[Path, typer.Argument(help="A results.json, or the run that has it.")]


@bench_app.command("report")
def bench_report(results: ResultsArgument) -> None:
    """Draw the report of a results.json again: tables, report.md and the figure beside it."""
    from raysft.studies.seq_len.report import read_results, terminal_tables, verdict, write_report

    file, found = read_results(results)
    write_report(found, file.parent)
    for table in terminal_tables(found):
        console.stdout.print(table)
    print(verdict(found))


@bench_app.command("compare")
def bench_compare(
    first: ResultsArgument,
    second: ResultsArgument,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Of time and of memory.")] = 0.1,
) -> None:
    """Two results side by side; exit code 1 if the second is worse by more than the tolerance."""
    from raysft.studies.seq_len.compare import compare

    raise typer.Exit(compare(first, second, tolerance, console.stdout))


cluster_commands.add_to(app)


if __name__ == "__main__":
    main()
