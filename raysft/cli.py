"""The command line: resolves, validates, writes run.json and hands it over. Light imports only."""

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from raysft import __version__, console, rundir
from raysft.errors import INTERRUPTED, RunError, UserError

app = typer.Typer(
    name="raysft",
    help="Tune GPT-2-class language models on instruction data, with DeepSpeed ZeRO-3 on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[str, typer.Argument(help="A TOML file, or the name of a preset.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a config key.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run directory.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run --name.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Write run.json, print the plan and the command, stop.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End standard output with one line of JSON.")
]
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
    profile: ProfileOption = False,
) -> None:
    """Masked supervised fine-tuning: loss on response tokens only."""
    from raysft import plan, stamp, submit
    from raysft.config.load import load_config
    from raysft.resume import check_resume

    profiled = [f"log.profile_steps={PROFILE_STEPS}"] if profile else []
    resolved = load_config(config, [*overrides, *profiled])
    if name is None and resolved.run.name is None:
        if resume:
            raise UserError(f"--resume needs --name: which run in {resolved.run.storage}/?")
        name = f"{Path(config).stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if name is not None:
        run_section = resolved.run.model_copy(update={"name": name})
        resolved = resolved.model_copy(update={"run": run_section})
    run_dir = Path(resolved.run.storage) / str(resolved.run.name)
    if resume:
        check_resume(run_dir, resolved)
    elif any((run_dir / started).exists() for started in rundir.STARTED):
        raise UserError(
            f"{run_dir} holds a run already: choose another --name, go on with it by --resume, "
            "or remove it"
        )
    spec = {
        "verb": "train",
        "config": resolved.model_dump(mode="json"),
        "stamp": stamp.submission(),
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        rundir.write_json(run_dir / rundir.RUN, spec)
    except OSError as error:
        raise UserError(f"run.storage: {run_dir} cannot be written: {error.strerror}") from None
    console.stderr.print(f"[bold]raysft train[/] {config} to {run_dir}")
    for row in plan.equations(resolved):
        console.fact(*row)
    if dry_run:
        print(submit.entrypoint(run_dir / rundir.RUN))
        return
    with console.Renderer() as render:
        code = submit.run_local(run_dir, render)
    finish(run_dir, render, code, as_json=as_json)


def finish(run_dir: Path, render: console.Renderer, code: int, *, as_json: bool) -> None:
    """The last words of a run, and its exit code."""
    end = render.end
    if end is None:
        log = run_dir / rundir.LOG
        if code == INTERRUPTED:
            console.error(f"killed before it could end; see {log}")
            raise typer.Exit(code)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"the job ended without a word (exit code {code}); {log} ends:\n{tail}")
    summary: dict[str, Any] = dict(end["summary"])
    if summary["status"] == "interrupted":
        say_how_to_resume(run_dir, summary)
        code = INTERRUPTED
    elif summary["status"] == "failed":
        if summary["error"] != render.told:
            console.error(summary["error"])
        console.stderr.print(f"[dim]details: {run_dir / rundir.LOG}[/]", soft_wrap=True)
    if as_json:
        print(json.dumps(summary, separators=(",", ":")))
    elif summary["status"] == "done":
        first, last = summary["eval_loss_first"], summary["eval_loss_last"]
        heldout = "" if last is None else f", held-out loss {first:.4f} to {last:.4f}"
        print(f"done: {summary['steps']} steps{heldout}; model in {summary['model_dir']}")
    raise typer.Exit(code)


def say_how_to_resume(run_dir: Path, summary: dict[str, Any]) -> None:
    if not rundir.checkpoints(run_dir):
        console.error(f"interrupted before the first checkpoint; nothing to resume in {run_dir}")
        return
    words = shlex.split(summary["stamp"]["command"])
    words += [] if "--name" in words else ["--name", run_dir.name]
    words += [] if "--resume" in words else ["--resume"]
    console.error(f"interrupted; go on from the newest checkpoint with\n  {shlex.join(words)}")


data_app = typer.Typer(no_args_is_help=True, help="Look at what the data supervises.")
app.add_typer(data_app, name="data")


@data_app.command()
def preview(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    count: Annotated[int, typer.Option("-n", min=1, help="Records of each source.")] = 3,
) -> None:
    """Records as tokens: which are trained, which are prompt, special or cut."""
    from raysft import views
    from raysft.config.load import load_config
    from raysft.data.preview import previews
    from raysft.train.model import load_template

    resolved = load_config(config, overrides)
    template = load_template(resolved)
    for view in previews(resolved, template, count):
        views.print_record(view, console.stdout)
        console.stdout.print()
    console.stderr.print(views.legend())


@data_app.command()
def stats(
    config: ConfigArgument,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Audit the whole set: lengths, masks, cuts, end tokens, duplicates."""
    from raysft import views
    from raysft.cluster import shut_down_ray, start_ray
    from raysft.config.load import load_config
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare
    from raysft.train.model import load_template

    # An audit tells of every bad record instead of stopping at the first.
    resolved = load_config(config, [*overrides, "data.on_bad_record=skip"])
    template = load_template(resolved)
    try:
        prepared = prepare(resolved, template, lambda: start_ray(resolved))
    finally:
        shut_down_ray()
    facts = audit(resolved, template, prepared)
    views.print_audit(facts, console.stderr if as_json else console.stdout)
    console.findings(facts["findings"])
    if as_json:
        print(json.dumps(facts, separators=(",", ":")))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run directory or a checkpoint in it.")],
    to: Annotated[Path | None, typer.Option("--to", help="Default: RUN_DIR/model.")] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    from raysft.export import export_checkpoint

    print(export_checkpoint(run_dir, to))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Run directory, model folder or hub id.")],
    instruction: Annotated[str, typer.Argument(help="What to ask.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Answer one instruction, greedily, with the template the model was trained with."""
    from raysft.generate import answer, load, prompt_ids

    folder = Path(model) / rundir.MODEL if (Path(model) / rundir.RUN).exists() else Path(model)
    if (Path(model) / rundir.RUN).exists() and not folder.is_dir():
        raise UserError(f"{model} has no model yet: the run did not end; try `raysft export`")
    path = str(folder) if folder.is_dir() else model
    loaded, template = load(path)
    prompts = [prompt_ids(instruction, template)]
    print(answer(loaded, template, prompts, max_new_tokens)[0].strip())


@app.command()
def runs(
    storage: Annotated[Path, typer.Argument(help="Where the runs lie.")] = Path("runs"),
) -> None:
    """What ran, and how it ended."""
    from raysft.runs import runs_table

    console.stdout.print(runs_table(storage))


if __name__ == "__main__":
    main()
