"""The trained model as a Hugging Face folder, straight from the engine."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysft.errors import RunError
from raysft.model.adapter import peft_config_of
from raysft.model.adapter_files import load_adapted, write_adapted
from raysft.model.critic import without_value_head
from raysft.model.files import is_adapter
from raysft.model.load import auto_class
from raysft.model.scalar import is_scalar
from raysft.train.checkpoint.export import set_modes
from raysft.train.checkpoint.integrity import PROBE_TOKENS

# Of the logits of two ways to compute the same model in a type, by their L2 norms. Where they
# compute two models, it is about 1.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


def export(
    engine: Any, tokenizer: Any, folder: Path, probe: torch.Tensor, *, merged: bool = True
) -> float | None:
    """Write the weights the engine computes with as a Hugging Face folder, and check them.

    merged: whether a model with an adapter is written as a whole one, or its adapter alone. Every
    rank must call it. On rank 0 the folder is loaded again and its logits on `probe` (token
    ids, int64 [T]) are compared with the engine's: returns the largest difference, None elsewhere.
    Of a reward model, the rewards of its beginnings, which transformers gets in one padded batch.
    Raises RunError when parameters are missing, or the difference is more than rounding explains:
    then what was trained is not what the folder computes.
    """
    weights = gather_weights(engine)
    probe = probe[:PROBE_TOKENS].to(engine.device)
    logits = engine_outputs(engine, probe)
    if weights is None:
        return None
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = next(iter(weights.values())).dtype
    expected = sum(weights[name].numel() for name in written(engine))
    if peft_config_of(engine):
        write_adapted(engine.module, weights, partial, merged=merged, dtype=dtype)
    else:
        engine.module.save_pretrained(partial, state_dict=weights)  # empties the dict as it writes
    tokenizer.save_pretrained(partial)
    again = folder_outputs(partial, probe, dtype, expected, is_scalar(engine)).to(logits.device)
    require_equal(again, logits, dtype, partial)
    set_modes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return float((again - logits).abs().max())


def written(engine: Any) -> dict[str, torch.nn.Parameter]:
    """By name: of a model with an adapter that alone, for the other weights lie elsewhere."""
    named = without_value_head(dict(engine.module.named_parameters()))
    return {n: p for n, p in named.items() if p.requires_grad or not peft_config_of(engine)}


def gather_weights(engine: Any) -> dict[str, torch.Tensor] | None:
    """What is written and saved buffers on rank 0, one gathered at a time; None on other ranks."""
    import deepspeed

    first, partitioned = dist.get_rank() == 0, engine.zero_optimization_stage() == 3
    weights: dict[str, torch.Tensor] = {}
    engine.empty_partition_cache()  # an evaluation leaves prefetched parameters in flight
    for name, parameter in written(engine).items():
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if first:
                weights[name] = parameter.detach().cpu().clone()
    saved = engine.module.state_dict().keys() if first else ()
    buffers = {n: b.cpu() for n, b in engine.module.named_buffers() if n in saved}
    return weights | buffers if first else None


def has_room(device: torch.device, needed_bytes: int) -> bool:
    """Whether so much more fits a GPU. A CPU is not asked: the weights are there already."""
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] > needed_bytes


@torch.no_grad()
def engine_outputs(engine: Any, probe: torch.Tensor) -> torch.Tensor:
    """Logits fp32 [1, T, V] of the tokens, or rewards [B, 1] of their B beginnings."""
    engine.eval()
    if is_scalar(engine):
        ends = torch.tensor(beginnings(probe), device=probe.device) - 1
        output = engine(input_ids=probe[None], tokens=ends)[:, None]
    else:
        output = engine(input_ids=probe[None], use_cache=False).logits.float()
    engine.train()
    result: torch.Tensor = output
    return result


def beginnings(probe: torch.Tensor) -> list[int]:
    """Lengths, the longest last."""
    return sorted({max(1, len(probe) * quarter // 4) for quarter in (1, 2, 3, 4)})


def folder_outputs(
    folder: Path, probe: torch.Tensor, dtype: torch.dtype, expected: int, scalar: bool
) -> torch.Tensor:
    """As `engine_outputs`, by transformers. Raises RunError when parameters are missing."""
    if is_adapter(folder):
        model = load_adapted(folder, dtype=dtype).eval()
    else:
        model = auto_class(scalar).from_pretrained(folder, dtype=dtype).eval()
    found = sum(parameter.numel() for parameter in model.parameters())
    if found < expected:
        raise RunError(f"the exported {folder} holds {found:,} of {expected:,} parameters")
    if has_room(probe.device, 2 * expected * dtype.itemsize):
        model.to(probe.device)
    ids, options = probe[None], {}
    if scalar:
        lengths = torch.tensor(beginnings(probe), device=probe.device)[:, None]
        mask = torch.arange(len(probe), device=probe.device) < lengths
        ids = torch.where(mask, ids, model.config.pad_token_id)
        options = {"attention_mask": mask.long().to(model.device)}
    with torch.no_grad():
        output = model(input_ids=ids.to(model.device), use_cache=False, **options)
    logits: torch.Tensor = output.logits.float()
    return logits


def require_equal(
    found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, folder: Path
) -> None:
    """Raises RunError where logits differ by more than rounding explains."""
    gap = float((found - wanted).norm() / wanted.norm())
    if not gap <= ROUNDING[dtype]:
        raise RunError(
            "the exported model does not compute what was trained: its outputs on a record differ "
            f"by {gap:.0%} of their size, where rounding explains {ROUNDING[dtype]:.1%}. Do not "
            f"use {folder}; the checkpoints of the run are kept. raysft trains this kind of model "
            "wrongly as it is set up: try batch.packing = false"
        )
