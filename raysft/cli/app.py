"""The command line: resolves, validates, writes run.json and hands it over. Light imports only."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from raysft import __version__
from raysft.cli import cluster_commands, config_commands, model_commands, run_commands, terminal
from raysft.cli.groups import SearchByDefault
from raysft.cli.launch import command
from raysft.cli.options import ConfigArgument, ConfigCommand, JsonOption, SetOption, read_config
from raysft.errors import RunError, UserError
from raysft.verbs.registry import STUDIES, VERBS

app = typer.Typer(
    name="raysft",
    help="Tune GPT-2-class language models on instruction data, with DeepSpeed ZeRO-3 on Ray.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    try:
        app()
    except (UserError, RunError) as error:
        terminal.error(str(error))
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"raysft {__version__}")
        raise typer.Exit()


tune_app = typer.Typer(
    cls=SearchByDefault, no_args_is_help=True, help="Search config keys: `raysft tune CONFIG`."
)
app.add_typer(tune_app, name="tune")


bench_app = typer.Typer(no_args_is_help=True, help="Measure the real training step.")
app.add_typer(bench_app, name="bench")

for verb in VERBS.values():
    group, _, name = verb.name.rpartition(" ")
    if verb.name == "tune":
        tune_app.command("search", cls=ConfigCommand)(command(verb))
    elif verb.is_a_run:
        of_group = bench_app if group == "bench" else app
        of_group.command(name, cls=ConfigCommand)(command(verb))

ResultsArgument = Annotated[Path, typer.Argument(help="A results.json, or the run that has it.")]


@tune_app.command("report")
@bench_app.command("report")
def report(results: ResultsArgument) -> None:
    """Draw the report of a study again: tables, report.md and the figures beside it.

    Example: raysft bench report runs/lengths
    """
    from raysft.studies.results import read_with_study

    file, found, study = read_with_study(results, STUDIES)
    study.write_report(found, file.parent)
    for table in study.tables(found):
        terminal.stdout.print(table)
    terminal.say(study.verdict(found))


@bench_app.command("compare")
def compare_results(
    first: ResultsArgument,
    second: ResultsArgument,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Such as 0.1 for 10 %.")] = 0.1,
) -> None:
    """Two results side by side; exit code 1 if the second is worse by more than the tolerance.

    Example: raysft bench compare runs/before runs/after --tolerance 0.05
    """
    from raysft.studies.compare import compare
    from raysft.studies.results import read_with_study

    file_a, a, study = read_with_study(first, STUDIES)
    file_b, b, other = read_with_study(second, STUDIES)
    if other is not study:
        raise UserError(f"{first} is of {study.name}, and {second} of {other.name}")
    worse = compare(study, (file_a, a), (file_b, b), tolerance, terminal.stdout)
    raise typer.Exit(int(worse))


data_app = typer.Typer(no_args_is_help=True, help="Look at what the data supervises.")
app.add_typer(data_app, name="data")


@data_app.command(cls=ConfigCommand)
def preview(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    count: Annotated[int, typer.Option("-n", min=1, help="Records of each source.")] = 3,
) -> None:
    """Records as tokens: which are trained, which are prompt, special or cut.

    Example: raysft data preview my.toml -n 5
    """
    from raysft.cli import data_tables
    from raysft.data.audit import files_left_out
    from raysft.data.folders import in_words
    from raysft.data.preview import previews
    from raysft.data.sources import sources
    from raysft.model.load import load_template

    resolved = read_config(config, overrides)
    template = load_template(resolved)
    for view in previews(resolved, template, count):
        data_tables.print_record(view, terminal.stdout)
        terminal.stdout.print()
    if left_out := files_left_out(sources(resolved.data, resolved.data.path)):
        terminal.warning(f"files that are not read: {in_words(left_out)}")
    terminal.stderr.print(data_tables.legend())


@data_app.command(cls=ConfigCommand)
def stats(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Audit the whole set: lengths, masks, cuts, end tokens, duplicates.

    Example: raysft data stats my.toml
    """
    from raysft.cli import data_tables
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare
    from raysft.model.load import load_template
    from raysft.runtime.connect import shut_down_ray, start_ray

    # An audit tells of every bad record instead of stopping at the first.
    resolved = read_config(config, [*overrides, "data.on_bad_record=skip"])
    template = load_template(resolved)
    try:
        prepared = prepare(resolved, template, lambda: start_ray(resolved), pairs=None)
    finally:
        shut_down_ray()
    facts = audit(resolved, template, prepared)
    data_tables.print_audit(facts, terminal.stderr if as_json else terminal.stdout)
    terminal.findings(facts["findings"])
    if as_json:
        print(json.dumps(facts, separators=(",", ":")))


@app.command()
def estimate(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="A known device, such as h100.")] = None,
    peak_tflops: Annotated[float | None, typer.Option(help="Its peak, TFLOP/s.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of a worker, GiB.")] = None,
    link_gbs: Annotated[float | None, typer.Option(help="Between workers, GB/s.")] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Of `raysft dpo` or `raysft reward`, not `train`.")
    ] = False,
    answers: Annotated[bool, typer.Option("--answers", help="Of `raysft ppo`.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Memory, FLOPs, traffic and time of a run, before running it.

    Example: raysft estimate gpt2-large --device h100
    """
    from raysft.cli.estimate_tables import renderables
    from raysft.estimate.report import estimate as estimate_run

    resolved = read_config(config, overrides)
    if pairs:
        from raysft.verbs.pair_config import as_records

        resolved = as_records(resolved)
        terminal.fact("pairs", "a pair counts as two records of batch.seq_len")
        terminal.fact("reference", "of DPO: one forward pass over all pairs, before the first step")
    if resolved.scaling.elastic:
        fewest = resolved.scaling.fewest
        terminal.fact(
            "workers", f"{resolved.scaling.count}: told for {fewest}, which hold most each"
        )
        resolved = resolved.at(fewest)
    facts = estimate_run(
        resolved,
        device=device,
        peak_tflops=peak_tflops,
        memory_gib=memory_gib,
        link_gbs=link_gbs,
        answers=answers,
    )
    out = terminal.stderr if as_json else terminal.stdout
    for part in renderables(facts):
        out.print(part)
    if as_json:
        print(json.dumps(facts, separators=(",", ":")))


model_commands.add_to(app)
cluster_commands.add_to(app)
config_commands.add_to(app)
run_commands.add_to(app)


if __name__ == "__main__":
    main()
