"""The training loop that every Ray Train worker runs."""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from raysft.config.deepspeed import deepspeed_config
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.data.loader import RankData
from raysft.errors import NotFinite
from raysft.estimate.shape import dims_of_gpt2
from raysft.model.cpu_bf16 import choose as choose_products
from raysft.model.load import DTYPES, load_model
from raysft.runs import provenance, rundir
from raysft.runs.events import Emit, Event
from raysft.train import spikes
from raysft.train.checkpoint import restore
from raysft.train.checkpoint.save import Saver
from raysft.train.engine import check_precision, make_engine
from raysft.train.hardware_peak import measure_peak
from raysft.train.mailbox import Wish, post
from raysft.train.metrics import Progress, Window, due
from raysft.train.perf import StepClock, held_memory_gib, keep_freed_memory, memory_kind
from raysft.train.profile import Profile, phase, watch_communication
from raysft.train.request import WishFlag
from raysft.train.schedule import rate_at
from raysft.train.step import StepResult, evaluate, train_step


@dataclass(frozen=True)
class WorkerJob:
    """What the driver hands to every worker."""

    config: Config
    hf_config: Any
    tokenizer: Any
    total_steps: int
    run_dir: Path
    exports: bool = True  # writes the model at the end
    start_from: Path | None = None  # a checkpoint, where the run has none of its own


def train_worker(
    job: WorkerJob, train: TokenDataset, heldout: TokenDataset, mailbox: Any
) -> dict[str, Any]:
    """Train, evaluate, checkpoint and export. Returns the totals of the run.

    mailbox: takes events to the driver, and its wish to stop.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config, last = job.config.at(world_size), job.total_steps
    emit: Emit = post(mailbox) if rank == 0 else lambda _: None
    emit({"event": "placed", "placement_group": ray.util.get_current_placement_group().id.hex()})
    rundir.require_shared(job.run_dir)
    data = RankData(config, train, heldout, rank, world_size)
    engine = start_engine(config, job, emit)
    if config.log.profile_steps:
        watch_communication()
    progress = restore.restore(engine, job.run_dir, job.start_from, emit) or Progress()
    window, clock = Window(), StepClock()
    saver = Saver(engine, job.tokenizer, job.run_dir, emit)
    emit({"event": "started", "step": progress.step})
    if not progress.step:
        emit({"event": "metrics", "step": 0} | evaluate_into(progress, engine, data))

    steps_to_profile = min(config.log.profile_steps, last - progress.step - 1) if rank == 0 else 0
    wish = WishFlag(mailbox, engine.device, config.log.every_steps)
    profile = Profile(steps_to_profile, job.run_dir / "profile", engine.device)
    first = progress.step + 1  # of this process
    clock.start()
    for batches, tokens, supervised_tokens, pairs in data.steps(progress.step, last):
        wish.ask(progress.step + 1)
        lr = rate_at(progress.applied_steps, config.optim.lr, config.schedule, last)
        limit = spikes.norm_limit(progress.recent_norms, config.optim.skip_spikes)
        result = train_step(
            engine, batches, supervised_tokens=supervised_tokens, lr=lr, norm_limit=limit
        )
        progress.advance(tokens, supervised_tokens, result)
        seconds = clock.stop(tokens, supervised_tokens, pairs, applied=result.applied)
        window.add(result, tokens, supervised_tokens, seconds)
        if config.optim.skip_spikes:
            watch_norm(progress, result, limit, config.optim.skip_spikes, emit)

        step = progress.step
        asked = wish.answer() if step < last else Wish.GO_ON
        if step == first:
            emit({"event": "first_step"})
            if not config.on_gpu:
                keep_freed_memory()
        every = config.checkpoint.every_steps
        saves = every > 0 and (asked != Wish.GO_ON or due(step, every, last=last))
        line: Event = {}
        # Also at a checkpoint, where a resumed run begins to average anew.
        if step == 1 or saves or due(step, config.log.every_steps, last=last):
            line |= {"lr": lr} | window.reduce(engine.device, config.optim.max_grad_norm, step)
            line["time_left_s"] = (last - step) * line["step_time_s"]
            progress.record_train(line["loss"], line["clipped_steps"])
            window = Window()
        if due(step, config.eval.every_steps, last=last):
            with phase("evaluation"):
                line |= evaluate_into(progress, engine, data)
        if line:
            emit({"event": "metrics", "step": step} | line)
        if saves:
            with phase("checkpoint"):
                saver.save(progress, data.probe)
            wish.granted()
        if steps_to_profile > 0 and (rows := profile.step_ends()):
            emit({"event": "profile", "steps": steps_to_profile, "rows": rows})
        if asked == Wish.STOP:
            return {"interrupted": True}
        clock.start()

    totals = progress.totals() | clock.summary() | saver.summary()
    totals |= utilisation(config, engine, clock)
    if job.exports:
        folder = job.run_dir / rundir.MODEL
        totals["export_logit_difference"] = restore.export(
            engine, job.tokenizer, folder, data.probe
        )
    return totals


def watch_norm(
    progress: Progress, result: StepResult, limit: float, times: float, emit: Emit
) -> None:
    """Tell of a skipped spike, and keep the norm of this step for the limits of the next ones."""
    norm = float(result.grad_norm)
    if result.spike:
        message = spikes.words(progress.step, norm, limit, times)
        emit({"event": "warning", "message": message})
    spikes.remember(progress.recent_norms, norm)


def utilisation(config: Config, engine: Any, clock: StepClock) -> dict[str, Any]:
    """The device's peak, and the share of it that the model's FLOPs are: null if unknown."""
    peak = measure_peak(engine.device, DTYPES[config.engine.precision])
    dims = dims_of_gpt2(engine.module.config.to_dict())
    done = clock.flops_per_second(dims) if dims else None
    return {"peak": peak, "mfu": done / peak["flops_per_second"] if done else None}


def evaluate_into(progress: Progress, engine: Any, data: RankData) -> Event:
    """Evaluate on the held-out records and keep the result in the run's progress.

    Raises NotFinite.
    """
    result = evaluate(engine, data.eval_batches)
    if result.loss is not None and not math.isfinite(result.loss):
        message = f"the held-out loss is {result.loss} at step {progress.step}: lower optim.lr"
        raise NotFinite(message, progress.step)
    progress.record_eval(result.loss, result.instruction_loss)
    return {"eval_loss": result.loss, "eval_instruction_loss": result.instruction_loss}


def start_engine(config: Config, job: WorkerJob, emit: Emit) -> Any:
    """Model and DeepSpeed engine on this worker's device."""
    import deepspeed

    torch.set_num_threads(config.scaling.cpus_per_worker)
    # Ray has made the process group; DeepSpeed adopts it and reads the local rank from here.
    os.environ["LOCAL_RANK"] = str(ray.train.get_context().get_local_rank())
    let_ninja_be_found()
    skip_inference_op(deepspeed)
    check_precision(config.engine.precision)
    deepspeed.init_distributed(dist_backend="nccl" if config.on_gpu else "gloo")
    products = None  # how bf16 is multiplied, where there is a choice
    if not config.on_gpu:
        chosen = choose_products(config.engine.cpu_products)
        products = chosen if config.engine.precision == "bf16" else None
    held = {"process": held_memory_gib(ray.train.torch.get_device())}
    model = load_model(config, job.hf_config, deepspeed_config(config), len(job.tokenizer))
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    engine, kernel = make_engine(config, model)
    held["model states"] = held_memory_gib(engine.device) - held["process"]
    emit(
        {
            "event": "workers",
            "world_size": dist.get_world_size(),
            "parameters": parameters,
            "optimizer": kernel,
            "products": products,
            "memory_kind": memory_kind(engine.device),
            "memory_gib": held,
            "observed": provenance.observed(),
        }
    )
    return engine


def let_ninja_be_found() -> None:
    """DeepSpeed calls it by name to compile its CPU Adam, and it lies beside this Python."""
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{beside}"


def skip_inference_op(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, a minute at the first start.

    Only tensor-parallel inference on a CPU uses it; training goes through Gloo.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
