"""For notebooks and programs: what the command line does, as functions, by the same code.

run = raysft.train("gpt2-tiny-cpu", optim={"lr": 1e-3})
run.metrics.eval_loss.dropna()
"""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from raysft.cli import terminal
from raysft.cli.answering import place_of
from raysft.cli.last_words import Ended
from raysft.cli.launch import Submission, launch
from raysft.cli.options import validated
from raysft.cli.run_commands import run_folder
from raysft.config.load import read_source, with_overrides
from raysft.config.of_run import flat
from raysft.config.schema import Config
from raysft.errors import INTERRUPTED, RunError, UserError
from raysft.estimate import report
from raysft.runs import rundir
from raysft.studies.training.figure import training_figure
from raysft.studies.training.report import clipped_to, read_metrics
from raysft.verbs.train import TRAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Of a library that lacks ipywidgets for bars of progress, of which there are none here.
warnings.filterwarnings("ignore", message="IProgress not found")

# A preset, a TOML file, a run to start again, or the sections themselves.
Source = str | Path | Mapping[str, Any]


def train(
    config: Source, *, name: str | None = None, resume: bool = False, **overrides: Any
) -> "Run":
    """Train as `raysft train` does, in a process of its own, and show what it shows.

    overrides: sections of the config with the keys to change, such as `optim={"lr": 1e-3}`; None
    puts a key back to its default. name and resume: as `--name` and `--resume`.

    Interrupting it (in a notebook: the square) ends the run after a checkpoint. Raises UserError
    where the input is wrong, RunError where the run failed, KeyboardInterrupt where it was
    interrupted.
    """
    source = "run" if isinstance(config, Mapping) else str(config)
    typed = Submission(
        name, resume, accept_changes=False, dry_run=False, as_json=False, address=None,
        ship_code=False,
    )  # fmt: skip
    try:
        with shown_on_stdout():
            launch(TRAIN, source, resolved(config, overrides), typed)
    except Ended as ended:
        if ended.exit_code == 0:
            return load_run(ended.summary["run_dir"])
        if ended.exit_code == INTERRUPTED:
            raise KeyboardInterrupt from None
        kind = UserError if ended.exit_code == UserError.exit_code else RunError
        raise kind(ended.summary["error"]) from None
    except typer.Exit:  # killed before it could say how it ended
        raise KeyboardInterrupt from None
    raise AssertionError("launch has returned")


def estimate(
    config: Source,
    *,
    device: str | None = None,
    peak_tflops: float | None = None,
    memory_gib: float | None = None,
    link_gbs: float | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """What `raysft estimate --json` says: memory, FLOPs, traffic and time of a run.

    device: one of the datasheet, such as "h100". The figures beside it win over those of the
    datasheet: TFLOP/s, GiB of a worker, GB/s between workers. overrides: as of `train`.

    Raises UserError.
    """
    asked = resolved(config, overrides)
    return report.estimate(
        asked.at(asked.scaling.fewest), device=device, peak_tflops=peak_tflops,
        memory_gib=memory_gib, link_gbs=link_gbs,
    )  # fmt: skip


def load_run(run: str | Path) -> "Run":
    """A run by its folder, or by its name in runs/, whatever its verb. Raises UserError."""
    folder = run_folder(str(Path(run).expanduser()))
    rundir.read_run(folder / rundir.RUN, "verb", "config", "stamp")
    return Run(folder)


@dataclass(frozen=True)
class Run:
    """A run directory. It is read when it is asked, so that a run that goes on can be looked at."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """All keys, by section, as the run was given them."""
        spec = rundir.read_run(self.folder / rundir.RUN, "config")
        return dict(spec["config"])

    @property
    def status(self) -> str:
        """done, failed, interrupted, running, died, or planned."""
        return rundir.status(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What it came to. Raises UserError where it has not begun."""
        return rundir.read_json(self.folder / rundir.SUMMARY)

    @property
    def metrics(self) -> "DataFrame":
        """By step, under the names of docs/training.md; NaN where a step has none of a kind."""
        return frame(read_metrics(self.folder / rundir.METRICS))

    @property
    def samples(self) -> "DataFrame":
        """By step: answers while it trained, with `eval.generate_every_steps`."""
        return frame(read_metrics(self.folder / rundir.SAMPLES))

    def plot(self) -> "Figure":
        """Losses, rate, gradient norm and throughput over the steps: the figure of report.md.

        Raises UserError where there is no step yet.
        """
        lines = read_metrics(self.folder / rundir.METRICS)
        if not lines:
            raise UserError(f"{self.folder} has taken no step yet: there is nothing to draw")
        limit = clipped_to(self.config)
        figure: Figure = training_figure(lines, self.folder.resolve().name, max_grad_norm=limit)
        return figure

    def model(self) -> tuple[Any, Any]:
        """The model and the tokenizer of transformers, in evaluation mode, on the GPU if there is
        one. Raises UserError where the run has no model, or one that answers nothing."""
        from raysft.model.generate import load

        model, template = load(place_of(str(self.folder)))
        return model, template.tokenizer

    def generate(self, instructions: Sequence[str], *, max_new_tokens: int = 256) -> list[str]:
        """A greedy answer to each, in the template it was trained with. Raises UserError."""
        from raysft.data.prompts import typed
        from raysft.model.generate import answer, encoded, load, positions_of

        model, template = load(place_of(str(self.folder)))
        asked = [typed(text, None) for text in instructions]
        room = positions_of(model)
        rows = [encoded(template, one.conversation, one.place, room) for one in asked]
        return answer(model, template, rows, max_new_tokens)

    def _repr_html_(self) -> str:
        """For a notebook."""
        facts: dict[str, Any] = {"run": self.folder, "status": self.status}
        if (self.folder / rundir.SUMMARY).exists():
            keys = ("steps", "eval_loss_first", "eval_loss_last", "exact_match", "wall_s")
            facts |= {key: value for key in keys if (value := self.summary.get(key)) is not None}
        rows = (
            f"<tr><th>{key}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"


def resolved(config: Source, overrides: Mapping[str, Any]) -> Config:
    """Raises UserError."""
    if isinstance(config, Mapping):
        raw, where = json.loads(json.dumps(dict(config), default=str)), "config"
    else:
        raw, where = read_source(str(config)), str(config)
    return validated(with_overrides(raw, flat(dict(overrides))), where)


def frame(lines: Sequence[Mapping[str, Any]]) -> "DataFrame":
    from pandas import DataFrame

    return DataFrame(list(lines)).set_index("step") if lines else DataFrame()


@contextmanager
def shown_on_stdout() -> Iterator[None]:
    """Of a notebook, whose standard error looks like a fault."""
    console = terminal.stderr
    # A property that never answers None: given back what it says, the console would be tied to
    # what standard error is at this moment.
    before = console._file
    console.file = sys.stdout
    try:
        yield
    finally:
        console._file = before
