"""Restore a run from its newest whole checkpoint."""

from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from raysft.errors import RunError
from raysft.model.adapter import peft_config_of
from raysft.runs import events, snapshot
from raysft.runs.events import Emit
from raysft.train.checkpoint import layout
from raysft.train.checkpoint.convert import load_converted
from raysft.train.checkpoint.integrity import (
    TOLERANCE,
    damage_seen_by_any,
    probe_loss,
    refuse_code,
    saved_by,
)
from raysft.train.checkpoint.repair import sweep
from raysft.train.metrics import Progress


def restore(engine: Any, run_dir: Path, start_from: Path | None, emit: Emit) -> Progress | None:
    """Load the newest whole checkpoint of this run into the engine, or else `start_from`.

    None where there is neither. Every rank must call it. Raises RunError when all are damaged, or
    when the engine does not compute what it computed when it was saved.
    """
    if dist.get_rank() == 0:
        sweep(run_dir)
    dist.barrier()
    folders = candidates(run_dir, start_from)
    for folder in folders:
        wrong = damage_seen_by_any(folder)
        if wrong is None:
            return load(engine, folder)
        emit(events.Warning(f"the checkpoint {folder} is damaged: {wrong}"))
    if folders:
        raise RunError(f"no checkpoint of {run_dir} is whole: {wrong} in the oldest of them")
    return None


def candidates(run_dir: Path, start_from: Path | None) -> list[Path]:
    """The newest first, as Ray Train has them."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return [] if start_from is None else [start_from]
    older = [path for path in snapshot.checkpoints(run_dir) if path != Path(newest.path)]
    return [Path(newest.path), *reversed(older)]


def load(engine: Any, folder: Path) -> Progress:
    """Also what other workers or another ZeRO stage saved, converted. Raises RunError."""
    refuse_code(folder)
    settings = hyperparameters(engine)
    present = int(engine.zero_optimization_stage())
    workers, stage = saved_by(folder)
    stage = present if stage is None else stage
    # Stage 0 partitions nothing: any number of workers reads it.
    if stage == present and (workers == dist.get_world_size() or stage == 0):
        # An adapter's lacks the weights that it leaves as they are.
        whole = peft_config_of(engine) is None
        loaded, client_state = engine.load_checkpoint(
            str(folder), tag=layout.TAG, load_module_strict=whole
        )
    else:
        loaded, client_state = load_converted(engine, folder, stage)
    if loaded is None:
        raise RunError(f"the checkpoint {folder} does not load")
    for group, now in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(now)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = engine.gradient_clipping()
    probe = client_state["probe"]
    loss = probe_loss(engine, torch.tensor(probe["ids"]))
    if not abs(loss - probe["loss"]) <= TOLERANCE * abs(probe["loss"]):
        raise RunError(
            f"{folder} is not the model that was saved: a stored batch has a loss of {loss:.6f}, "
            f"and had {probe['loss']:.6f}. Go on from an older checkpoint: remove this one"
        )
    rank = dist.get_rank() % workers  # of more workers, some begin with the state of another
    set_rng_state(torch.load(layout.random_state(folder, rank), weights_only=True))
    return Progress(**client_state["progress"])


def hyperparameters(engine: Any) -> list[dict[str, Any]]:
    """Of each parameter group, as the config has them.

    Loading sets them to those of the checkpoint, and of the first group where it was converted: to
    its weight decay, which not all groups have.
    """
    groups = engine.optimizer.param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
