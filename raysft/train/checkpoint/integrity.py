"""Whether a checkpoint is what was saved: its files by size and checksum, its weights by a loss.

And whether it is one at all: a file of PyTorch's may hold code, which runs when it is loaded.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from raysft.errors import RunError
from raysft.model.scalar import is_scalar
from raysft.train.checkpoint import layout

PROBE_TOKENS = 64
CHUNK = 1 << 22  # bytes
# What DeepSpeed's files name beside tensors and plain containers.
CLASSES = {
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
TOLERANCE = 1e-3  # of the probe's loss; it is equal to the bit where hardware and threads are


def write_manifest(
    folder: Path, step: int, zero_stage: int, identities: Mapping[str, str] | None
) -> None:
    """Sizes and checksums of this rank's files, beside them; what saved them, and from what.

    identities: see verbs.identities.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = {
        "step": step,
        "world_size": dist.get_world_size(),
        "zero_stage": zero_stage,
        **({"identities": dict(identities)} if identities else {}),
        "files": {
            str(path.relative_to(folder)): [path.stat().st_size, crc(path)] for path in files
        },
    }
    layout.manifest(folder, dist.get_rank()).write_text(json.dumps(manifest))


def verify_on_disk(folder: Path) -> None:
    """Read this rank's files again, from the disk and not from memory, where that can be asked for.

    Raises RunError when they are not what the manifest says.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    manifest = json.loads(layout.manifest(folder, dist.get_rank()).read_text())
    if wrong := first_wrong(folder, list(manifest["files"].items())):
        raise RunError(f"the disk does not keep what is written to it: in {folder}, {wrong}")


def crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def damage(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """The first thing that is wrong with a checkpoint; None where it is whole.

    Of `world_size` processes, each looks at its share of the files.
    """
    manifests = layout.manifests(folder)
    try:
        listed = [json.loads(manifest.read_text()) for manifest in manifests]
        wanted = listed[0]["world_size"] if listed else 1
        files = [item for manifest in listed for item in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "a manifest is damaged"
    if len(listed) != wanted:
        return f"{wanted - len(listed)} of {wanted} manifests are missing"
    return first_wrong(folder, files[rank::world_size])


def first_wrong(folder: Path, files: list[tuple[str, list[int]]]) -> str | None:
    """Of files under a folder, each with its size and checksum."""
    for name, (size, checksum) in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, and had {size:,}"
        if crc(path) != checksum:
            return f"{name} has other content than it had"
    return None


def refuse_code(folder: Path) -> None:
    """Raises RunError where a file of a checkpoint would call anything but what DeepSpeed saves."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():  # DeepSpeed would read it, and rglob does not
            raise RunError(
                f"{path} is a link to another folder, which no checkpoint of raysft has. Where "
                "does it come from?"
            )
        if not (path.name.endswith(".pt") and path.is_file()):
            continue
        try:
            calls = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - CLASSES
        except (ValueError, RuntimeError, EOFError, UnpicklingError) as error:
            raise RunError(
                f"{path} is not loaded: it is not what PyTorch saves today ({error}), and could "
                "run code. Where does it come from?"
            ) from None
        if calls:
            raise RunError(
                f"{path} is not loaded: it would run {', '.join(sorted(calls))}, which no "
                "checkpoint of raysft does. Where does it come from?"
            )


def saved_by(folder: Path) -> tuple[int, int | None]:
    """Number of workers and ZeRO stage that saved a whole checkpoint; older ones lack the stage."""
    manifest = json.loads(layout.manifest(folder, 0).read_text())
    return int(manifest["world_size"]), manifest.get("zero_stage")


def damage_seen_by_any(folder: Path) -> str | None:
    """The same from all ranks together, and the same on all ranks."""
    seen: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, damage(folder, dist.get_rank(), dist.get_world_size()))
    return next((one for one in seen if one is not None), None)


def probe_loss(engine: Any, ids: Tensor) -> float:
    """Mean NLL of a few tokens, int64 [T], in nats; of a reward model the norm of their rewards.

    Every rank must call it.
    """
    engine.eval()
    with torch.no_grad():
        batch = ids.unsqueeze(0).to(engine.device)
        if is_scalar(engine):
            everywhere = torch.arange(len(ids), device=engine.device)
            rewards = engine(input_ids=batch, tokens=everywhere)
            engine.train()
            return float(rewards.norm())
        logits = engine(input_ids=batch, use_cache=False).logits[0, :-1].float()
        loss = F.cross_entropy(logits, batch[0, 1:])
    engine.train()
    return float(loss)
