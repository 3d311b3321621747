"""Takes checkpoints: training waits while the state is written, and not for what follows."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch import nn

from raysft.errors import NotFinite
from raysft.model.adapter import peft_config_of
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.train.checkpoint import layout
from raysft.train.checkpoint.integrity import (
    PROBE_TOKENS,
    probe_loss,
    verify_on_disk,
    write_manifest,
)
from raysft.train.checkpoint.restore import rng_state
from raysft.train.metrics import Progress

MIB = 2**20
# Of a parameter in the largest checkpoint: fp32 weights, and the optimizer's weights and moments.
BYTES_PER_PARAMETER = 16
MARGIN = 1.05


class Saver:
    """Of one rank. Every rank must make the same calls."""

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        run_dir: Path,
        emit: Emit,
        identities: Mapping[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.run_dir = run_dir
        self.emit = emit
        self.identities = identities  # of what is trained on
        self.needed_bytes = 0  # of all ranks, on disk
        self.pause_told = False
        self.skipped = 0  # for want of disk space
        self.stalls_s: list[float] = []  # how long each checkpoint held training up

    def save(self, progress: Progress, probe: torch.Tensor) -> None:
        """Write engine, counters and RNG; checking them and moving them into place comes after.

        Nothing is written where the disk has no room for it: training goes on without.
        probe: token ids, int64 [T], whose loss is stored with them. Raises NotFinite when it is
        none: such a state is not worth keeping.
        """
        started, step = time.monotonic(), progress.step
        probe = probe[:PROBE_TOKENS]
        loss = probe_loss(self.engine, probe)
        if not math.isfinite(loss):
            raise NotFinite(f"the model gives a loss of {loss} at step {step}", step)
        if not self.has_room(step):
            self.skipped += 1
            return
        state = {"progress": asdict(progress), "probe": {"ids": probe.tolist(), "loss": loss}}
        folder = self.write(state)

        def move(_: Checkpoint, name: str) -> Checkpoint:
            target = self.run_dir / rundir.CHECKPOINTS / name
            stage = int(self.engine.zero_optimization_stage())
            write_manifest(folder, step, stage, self.identities)
            verify_on_disk(folder)
            move_into_place(folder, target)
            self.emit(events.Checkpoint(step))
            return Checkpoint.from_directory(str(target))

        ray.train.report(
            {"step": step, "eval_loss": progress.eval_loss_last},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=move,
            delete_local_checkpoint_after_upload=False,  # nothing is left of it
        )
        self.stalls_s.append(time.monotonic() - started)

    def write(self, state: dict[str, Any]) -> Path:
        """This rank's files, in a folder of its own beside the checkpoints."""
        beside = self.run_dir / rundir.CHECKPOINTS
        beside.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=layout.WRITING, dir=beside))
        adapter = peft_config_of(self.engine)
        with without_frozen(self.engine.module) if adapter else nullcontext():
            self.engine.save_checkpoint(
                str(folder), tag=layout.TAG, client_state=state,
                exclude_frozen_parameters=adapter is not None,
            )  # fmt: skip
        torch.save(rng_state(), layout.random_state(folder, dist.get_rank()))
        if dist.get_rank() == 0:
            self.engine.module.config.save_pretrained(folder / layout.HF_FOLDER)
            if self.engine.module.can_generate():
                self.engine.module.generation_config.save_pretrained(folder / layout.HF_FOLDER)
            if adapter is not None:
                adapter.save_pretrained(folder / layout.HF_FOLDER)
            self.tokenizer.save_pretrained(folder / layout.HF_FOLDER)
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        total = torch.tensor(size, device=self.engine.device)
        dist.all_reduce(total)
        self.needed_bytes = int(MARGIN * total.item())
        return folder

    def has_room(self, step: int) -> bool:
        """Whether the disk has; the first rank looks, and says so when that changes."""
        needed, free = self.needed_bytes or self.most_bytes(), 0
        if dist.get_rank() == 0:
            free = shutil.disk_usage(self.run_dir).free
        flag = torch.tensor([free >= needed], dtype=torch.int32, device=self.engine.device)
        dist.broadcast(flag, 0)
        if bool(flag) and self.pause_told:
            self.pause_told = False
            self.emit(events.Warning(f"room for a checkpoint again, step {step}"))
        elif not bool(flag) and not self.pause_told and dist.get_rank() == 0:
            self.pause_told = True
            message = (
                f"no checkpoint at step {step}: it needs {needed / MIB:,.0f} MiB, and the disk of "
                f"{self.run_dir} has {free / MIB:,.0f} free. Training goes on without until there "
                "is room: free some space"
            )
            self.emit(events.Warning(message))
        return bool(flag)

    def most_bytes(self) -> int:
        """What a checkpoint can have at most, before there was one."""
        trained = (p for p in self.engine.module.parameters() if p.requires_grad)
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
        return int(MARGIN * BYTES_PER_PARAMETER * parameters)

    def summary(self) -> dict[str, Any]:
        return {
            "checkpoints": len(self.stalls_s),
            "checkpoints_skipped": self.skipped,
            "checkpoint_stall_s": round(sum(self.stalls_s), 3),
        }


@contextmanager
def without_frozen(model: nn.Module) -> Iterator[None]:
    """Within it, its state_dict() lacks what is not trained: also under the other name of a tied
    weight, under which DeepSpeed 0.19.8 keeps the head."""

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(prefix + name, None)

    hook = model.register_state_dict_post_hook(drop)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hook.remove()


def move_into_place(folder: Path, target: Path) -> None:
    """Move this rank's files to those of the others.

    Ray Train registers the checkpoint when all ranks have done so, and removes older ones then.
    """
    for path in sorted(folder.rglob("*")):
        place = target / path.relative_to(folder)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    for place in {target, target.parent}:
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder)
