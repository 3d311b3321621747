"""Restore a run, and write its weights as a Hugging Face folder."""

import shutil
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from raysft.errors import RunError
from raysft.runs import rundir
from raysft.runs.events import Emit
from raysft.train.checkpoint.convert import load_converted
from raysft.train.checkpoint.integrity import (
    PROBE_TOKENS,
    TOLERANCE,
    damage_seen_by_any,
    probe_loss,
    refuse_code,
    saved_by,
)
from raysft.train.metrics import Progress

TAG = "state"  # DeepSpeed's name for the sub-folder of one checkpoint
HF_FOLDER = "hf"  # config and tokenizer, so that any checkpoint can be exported


def restore(engine: Any, run_dir: Path, start_from: Path | None, emit: Emit) -> Progress | None:
    """Load the newest whole checkpoint of this run into the engine, or else `start_from`.

    None where there is neither. Every rank must call it. Raises RunError when all are damaged, or
    when the engine does not compute what it computed when it was saved.
    """
    if dist.get_rank() == 0:
        rundir.sweep(run_dir)
    dist.barrier()
    folders = candidates(run_dir, start_from)
    for folder in folders:
        wrong = damage_seen_by_any(folder)
        if wrong is None:
            return load(engine, folder)
        emit({"event": "warning", "message": f"the checkpoint {folder} is damaged: {wrong}"})
    if folders:
        raise RunError(f"no checkpoint of {run_dir} is whole: {wrong} in the oldest of them")
    return None


def candidates(run_dir: Path, start_from: Path | None) -> list[Path]:
    """The newest first, as Ray Train has them."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return [] if start_from is None else [start_from]
    older = [path for path in rundir.checkpoints(run_dir) if path != Path(newest.path)]
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
        loaded, client_state = engine.load_checkpoint(str(folder), tag=TAG)
    else:
        loaded, client_state = load_converted(engine, folder, TAG, stage)
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
    set_rng_state(torch.load(folder / f"rng_{rank}.pt", weights_only=True))
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


def export(engine: Any, tokenizer: Any, folder: Path, probe: torch.Tensor) -> float | None:
    """Write the weights the engine computes with as a Hugging Face folder, and check them.

    Every rank must call it. On rank 0 the folder is loaded again and its logits on `probe` (token
    ids, int64 [T]) are compared with the engine's: returns the largest difference, None elsewhere.
    Raises RunError when parameters are missing.
    """
    weights = gather_weights(engine)
    engine.eval()
    with torch.no_grad():
        probe = probe[:PROBE_TOKENS].unsqueeze(0)
        logits = engine(input_ids=probe.to(engine.device), use_cache=False).logits.float().cpu()
    engine.train()
    if weights is None:
        return None
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = next(iter(weights.values())).dtype
    expected = sum(weight.numel() for weight in weights.values())
    engine.module.save_pretrained(partial, state_dict=weights)  # empties the dict as it writes
    tokenizer.save_pretrained(partial)
    difference = compare_logits(partial, probe, logits, dtype, expected)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return difference


def gather_weights(engine: Any) -> dict[str, torch.Tensor] | None:
    """All parameters and saved buffers on rank 0, one gathered at a time; None on other ranks."""
    import deepspeed

    first, partitioned = dist.get_rank() == 0, engine.zero_optimization_stage() == 3
    weights: dict[str, torch.Tensor] = {}
    engine.empty_partition_cache()  # an evaluation leaves prefetched parameters in flight
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if first:
                weights[name] = parameter.detach().cpu().clone()
    saved = engine.module.state_dict().keys() if first else ()
    buffers = {n: b.cpu() for n, b in engine.module.named_buffers() if n in saved}
    return weights | buffers if first else None


def compare_logits(
    folder: Path, probe: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype, expected: int
) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    found = sum(parameter.numel() for parameter in model.parameters())
    if found < expected:
        raise RunError(f"the exported {folder} holds {found:,} of {expected:,} parameters")
    with torch.no_grad():
        again = model(input_ids=probe, use_cache=False).logits.float()
    return float((again - logits).abs().max())
