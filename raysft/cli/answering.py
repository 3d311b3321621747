"""What `generate` and `chat` do with what was typed. Light imports only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.cli import terminal
from raysft.errors import RunError, UserError, is_out_of_memory
from raysft.runs import rundir, snapshot
from raysft.train.checkpoint import layout

if TYPE_CHECKING:
    from raysft.data.prompts import Prompt
    from raysft.model.generate import How


@contextmanager
def memory_is_told() -> Iterator[None]:
    """Raises RunError where there is not enough."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "the model and its answers need more memory than there is: try a smaller "
            "--max-new-tokens, or fewer prompts at a time with --batch-size"
        ) from error


def asked_for(
    temperature: float, top_p: float | None, stop: list[str], max_new_tokens: int
) -> "How":
    """Raises UserError for what means nothing."""
    from raysft.model.generate import How

    if top_p is not None and (temperature == 0 or top_p == 0):
        raise UserError(
            "--top-p is about answers that are sampled: give it a share above 0, and a "
            "--temperature, such as 0.7"
        )
    if "" in stop:
        raise UserError("--stop: an empty text would end every answer before it begins")
    return How(max_new_tokens, temperature, top_p, tuple(stop))


def text_of(instruction: str | None) -> str:
    """Of the command line, or else of standard input. Raises UserError."""
    if instruction not in (None, "-"):
        return str(instruction)
    if sys.stdin.isatty():
        terminal.stderr.print("[dim]Type what to ask; Ctrl-D on a line of its own ends it.[/]")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no text: {error}") from None


def place_of(model: str) -> str:
    """The folder of the model, or a hub id. Raises UserError where there is none yet."""
    folder = Path(model).expanduser()
    if layout.manifests(folder):
        raise UserError(
            f"{model} is a checkpoint, which holds more than a model: make one of it with\n"
            f"raysft export {model} --to FOLDER"
        )
    if not (folder / rundir.RUN).exists():
        return str(folder) if folder.is_dir() else model
    if (folder / rundir.MODEL).is_dir():
        return str(folder / rundir.MODEL)
    state = rundir.status(folder)
    if not snapshot.checkpoints(folder):
        raise UserError(f"{model} ({state}) has no model, and no checkpoint to make one of")
    raise UserError(
        f"{model} ({state}) has no model yet: make one of its newest checkpoint with\n"
        f"raysft export {model}"
    )


def ready(place: str, seed: int | None) -> tuple[Any, Any]:
    """Model and template; what is sampled begins at the seed. Raises UserError."""
    from transformers.utils import logging

    from raysft.model.generate import load_as_saved

    logging.set_verbosity_error()  # it warns of settings that a greedy answer does not use
    loaded, template = load_as_saved(place)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    return loaded, template


def answer_one(place: str, prompt: "Prompt", how: "How", seed: int | None, stream: bool) -> None:
    from raysft.model.generate import as_answer, encoded, generate_ids, positions_of

    model, template = ready(place, seed)
    ids = encoded(template, prompt.conversation, prompt.place, positions_of(model))
    (made,) = generate_ids(model, template, [ids], how, write=write if stream else None).rows
    found = as_answer(model, template, made, how)
    print("" if stream else found.text)
    if found.finish == "length" and sys.stderr.isatty():
        terminal.stderr.print(f"[dim]cut after {len(made)} tokens; see --max-new-tokens[/]")


def write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def answer_file(
    place: str,
    prompts: "list[Prompt]",
    to: Path | None,
    how: "How",
    seed: int | None,
    batch_size: int,
) -> None:
    """A line of JSON for each, in their order: to standard output, or to a file once all are there.

    Raises UserError.
    """
    from rich.progress import track

    from raysft.data.prompts import as_json
    from raysft.model.generate import encoded, generate_all, positions_of

    model, template = ready(place, seed)
    positions = positions_of(model)
    rows = [encoded(template, one.conversation, one.place, positions) for one in prompts]
    answers = generate_all(model, template, rows, how, batch_size)
    pairs = track(
        zip(prompts, answers, strict=True), "answering", len(prompts),
        console=terminal.stderr, transient=True, disable=not terminal.stderr.is_terminal,
    )  # fmt: skip
    lines = (as_json(prompt, found.text, found.finish) + "\n" for prompt, found in pairs)
    if to is None:
        sys.stdout.writelines(lines)
        return
    partial = to.with_name(to.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        partial.rename(to)
    except OSError as error:
        raise UserError(f"--to: {to} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    terminal.fact("answers", f"{len(prompts):,} in {to}")
