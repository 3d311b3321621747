"""Commands about a model that is trained: export it, ask it, talk to it. Light imports only."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from raysft.cli import completion, terminal
from raysft.cli.answering import (
    answer_file,
    answer_one,
    asked_for,
    memory_is_told,
    place_of,
    ready,
    text_of,
)
from raysft.cli.options import RunDirArgument
from raysft.errors import UserError

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a model's folder, or a hub id.",
        autocompletion=completion.runs,
    ),
]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="0: the likeliest token each time; more: sampled.")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sample among tokens of this share together."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of what is sampled.")]
StopOption = Annotated[
    list[str], typer.Option("--stop", metavar="TEXT", help="Ends an answer; may be repeated.")
]
SystemOption = Annotated[str | None, typer.Option("--system", help="What stands before all turns.")]
LongestOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]


def export(
    run_dir: RunDirArgument,
    to: Annotated[Path | None, typer.Option("--to", help="Default: RUN/model.")] = None,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--adapter",
            help="An adapter: merged into its model, or alone. Default: adapter.merge.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="NAME", help="And upload it there.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A repository that the push makes is private.")
    ] = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder, and print its path.

    With --push-to-hub, a model that the run has already is uploaded as it is.

    Example: raysft export runs/first --to first-model
    """
    if push_to_hub is not None:
        from raysft.config.run import hub_name

        try:
            hub_name(push_to_hub)
        except ValueError as error:
            raise UserError(f"--push-to-hub: {error}") from None
    elif private:
        raise UserError("--private is about --push-to-hub NAME: which name?")
    with only_the_result_on_stdout():
        from raysft.train.checkpoint.export import export_checkpoint, exported, push_run

        as_it_is = push_to_hub is not None and to is None and merge is None
        folder = exported(run_dir) if as_it_is else None
        folder = folder or export_checkpoint(run_dir, to, merged=merge)
        if push_to_hub is not None:
            url = push_run(folder, run_dir, push_to_hub, private=private)
            terminal.fact("pushed to", url)
    print(folder)


@contextmanager
def only_the_result_on_stdout() -> Iterator[None]:
    """What libraries print goes to standard error, that of C among it."""
    sys.stdout.flush()
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # bars of progress
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no GPU
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def generate(
    model: ModelArgument,
    instruction: Annotated[
        str | None, typer.Argument(help="What to ask; without it, or -, standard input.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Records without answers, or lines."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="JSONL of --prompts' answers.")
    ] = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop: StopOption = [],  # noqa: B006
    system: SystemOption = None,
    max_new_tokens: LongestOption = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = 32,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Default: in a terminal.")
    ] = None,
) -> None:
    """Answer one instruction, or each of a file, with the template the model was trained with.

    Example: raysft generate runs/first "Sort the words.\\npear apple"
    """
    from raysft.data.prompts import read_prompts, typed

    how = asked_for(temperature, top_p, stop, max_new_tokens)
    if prompts is not None and instruction is not None:
        raise UserError("an instruction or --prompts FILE: which of them?")
    if to is not None and prompts is None:
        raise UserError("--to takes the answers to --prompts FILE; one answer is printed")
    if prompts is not None:
        if to is not None and (to.exists() or not to.parent.is_dir()):
            why = "exists: name another file, or remove it" if to.exists() else "has no folder"
            raise UserError(f"--to: {to} {why}")
        asked = read_prompts(prompts, system)
        with memory_is_told():
            answer_file(place_of(model), asked, to, how, seed, batch_size)
        return
    prompt = typed(text_of(instruction), system)
    stream = sys.stdout.isatty() if stream is None else stream
    with memory_is_told():
        answer_one(place_of(model), prompt, how, seed, stream)


def chat(
    model: ModelArgument,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop: StopOption = [],  # noqa: B006
    system: SystemOption = None,
    max_new_tokens: LongestOption = 256,
) -> None:
    """Talk with a model: a line a turn, with what was said before.

    Ctrl-C stops an answer, Ctrl-D ends. Without a terminal, standard input is a script.

    Example: raysft chat runs/first --temperature 0.7
    """
    how = asked_for(temperature, top_p, stop, max_new_tokens)
    place = place_of(model)
    with memory_is_told():
        loaded, template = ready(place, seed)
        from raysft.cli.chat import converse
        from raysft.model.conversation import Talk

        converse(Talk(loaded, template, how, system))


def add_to(app: typer.Typer) -> None:
    for command in (export, generate, chat):
        app.command()(command)
