"""What the studies of several training runs share: their inputs, and the one run of a point."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.runs import events
from raysft.runs.events import Event
from raysft.runtime.fit import fit
from raysft.runtime.trainer import Placement

Placed = Callable[[Placement], None]  # is told where the workers of a point are


@dataclass(frozen=True)
class Inputs:
    """What all points share."""

    config: Config
    hf_config: Any
    tokenizer: Any
    train: TokenDataset
    heldout: TokenDataset
    run_dir: Path


def config_at(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Of a point: it keeps no checkpoint, and evaluates before the first step and after the last.

    Raises UserError where the overrides make no valid config.
    """
    quiet = {"checkpoint.every_steps": 0, "eval.every_steps": 0}
    raw = with_overrides(config.model_dump(mode="json"), quiet | dict(overrides))
    return validate(raw, "bench")


def check_gradients(config: Config) -> None:
    """Raises UserError where some of the gradients that are to be measured would be dropped."""
    if config.engine.precision == "fp16":
        raise UserError(
            "engine.precision fp16 drops gradients that overflow, which are to be measured: take "
            '"bf16" or "fp32"'
        )


def check_several(values: Sequence[float], key: str, noun: str) -> None:
    """Raises UserError where there are no two of them. noun: such as "weight"."""
    if len(set(values)) < 2:
        raise UserError(
            f"{key} has one {noun}: take two or more, or there is nothing to compare it with"
        )


def check_heldout(config: Config, compared: str) -> None:
    """Raises UserError where no record is to be held out. compared: such as "weights"."""
    if not config.data.eval_fraction and config.data.eval_path is None:
        raise UserError(
            f"{compared} are compared by their held-out loss, and no record is held out: set "
            "data.eval_fraction or data.eval_path"
        )


def require_heldout(heldout: TokenDataset, compared: str) -> None:
    """Raises UserError where the records are too few for one of them to be held out."""
    if not len(heldout):
        raise UserError(
            f"{compared} are compared by their held-out loss, and no record is held out of so few: "
            "raise data.eval_fraction, or set data.eval_path"
        )


def train_once(
    inputs: Inputs,
    config: Config,
    folder: Path,
    placed: Placed,
    *,
    train: TokenDataset,
    heldout: TokenDataset,
    wanted: str = "eval_loss",
    **options: Any,
) -> tuple[dict[int, Mapping[str, Any]], dict[str, Any]]:
    """The lines of metrics that have this key, by their step, and what was observed of the workers.

    options: of `fit`.
    """
    found: dict[int, Mapping[str, Any]] = {}
    observed: dict[str, Any] = {}

    def keep(event: Event) -> None:
        if isinstance(event, events.Workers):
            observed.update(event.observed)
        if isinstance(event, events.Metrics) and wanted in event.values:
            found[event.step] = event.values

    fit(
        config, train, heldout, inputs.hf_config, inputs.tokenizer, folder, keep, placed=placed,
        **options,
    )  # fmt: skip
    return found, observed
