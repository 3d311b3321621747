"""What a rank has for the length of a run, and what it does around the steps: all but the loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.errors import NotFinite
from raysft.estimate.adapters import adapted
from raysft.estimate.devices import device_of
from raysft.estimate.families import dims_of_family
from raysft.model.load import DTYPES
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.train.checkpoint.restore import restore
from raysft.train.checkpoint.save import Saver
from raysft.train.clock import StepClock
from raysft.train.engine import start_engine
from raysft.train.export import export
from raysft.train.hardware_peak import measure_peak
from raysft.train.mailbox import Ticker, post
from raysft.train.metrics import Progress, Window, due
from raysft.train.midway import answer_midway
from raysft.train.model_fault import told_of_the_model
from raysft.train.objectives.objective import Found, Objective, Reads
from raysft.train.probe import exact_layout
from raysft.train.profile import Profile, phase, watch_communication

ENDS_EARLY = "ending: no lower held-out loss in {} evaluations, the lowest was that of step {}"


@dataclass(frozen=True)
class WorkerJob:
    """What the driver hands to every worker."""

    config: Config
    objective: Objective
    hf_config: Any
    tokenizer: Any
    total_steps: int
    run_dir: Path
    exports: bool = True  # writes the model at the end
    answers: bool = False  # and lets it answer held-out records
    start_from: Path | None = None  # a checkpoint, where the run has none of its own
    identities: Mapping[str, str] | None = None  # of what is trained on
    evaluates_after: tuple[int, ...] = ()  # steps, beside those of eval.every_steps


@dataclass(frozen=True)
class Rank:
    """Stays the same from step to step, but for what engine and counters hold."""

    job: WorkerJob
    config: Config  # for this many workers, with records laid out so that each is exact
    engine: Any
    reads: Reads
    heldout: TokenDataset
    progress: Progress
    emit: Emit  # to the driver; of other ranks than 0 to nobody, as the next
    tick: Callable[[int, int, str], None]

    @property
    def keeps(self) -> bool | str:
        """By what the best model is kept; False where the last one is written, or none."""
        return self.job.exports and self.config.checkpoint.keep_best

    def tell(self, doing: str = "training") -> None:
        self.tick(self.progress.step, self.progress.tokens_seen, doing)


def get_ready(job: WorkerJob, train: TokenDataset, heldout: TokenDataset, mailbox: Any) -> Rank:
    """Engine, data and counters, as a checkpoint has left them where there is one."""
    number, world_size = dist.get_rank(), dist.get_world_size()
    config, objective = job.config.at(world_size), job.objective
    emit: Emit = post(mailbox) if number == 0 else lambda _: None
    rundir.require_shared(job.run_dir)
    longest = int(max(train.parts.max(initial=1), heldout.parts.max(initial=1)))
    longest = config.batch.seq_len if objective.draws else longest
    heads = {"scalar": objective.scalar, "critic": objective.critic}
    with told_of_the_model(job.hf_config):
        engine = start_engine(config, job.hf_config, len(job.tokenizer), emit, **heads)
        vocabulary, parts = job.hf_config.vocab_size, train.parts.shape[1]
        config = exact_layout(config, engine, vocabulary, longest, emit, parts=parts)
    records = objective.reads(config, train, heldout, number, world_size)
    reads: Reads = records
    if config.log.profile_steps:
        watch_communication()
    if objective.prepares is not None:
        reads = objective.prepares(engine, records, job.run_dir, emit)
    progress = restore(engine, job.run_dir, job.start_from, emit) or Progress()
    tick = Ticker(mailbox) if number == 0 else lambda *_: None
    return Rank(job, config, engine, reads, heldout, progress, emit, tick)


def profile_of(rank: Rank, last: int) -> Profile:
    """Of the steps after the first one, on rank 0."""
    wanted = rank.config.log.profile_steps if dist.get_rank() == 0 else 0
    steps = max(0, min(wanted, last - rank.progress.step - 1))
    return Profile(steps, rank.job.run_dir / "profile", rank.engine.device)


def evaluate(rank: Rank) -> Found:
    """Metrics of the held-out records, kept in the run's progress. Raises NotFinite."""
    objective, progress = rank.job.objective, rank.progress
    found = objective.evaluate(rank.engine, rank.reads.eval_batches)
    loss = found["eval_loss"]
    if loss is not None and not math.isfinite(loss):
        message = f"the held-out loss is {loss} at step {progress.step}: lower optim.lr"
        raise NotFinite(message, progress.step)
    before = objective.caution(progress.measures_first, progress.measures_last)
    progress.record_eval(found)
    caution = objective.caution(progress.measures_first, progress.measures_last)
    if caution and not before:
        rank.emit(events.Warning(f"step {progress.step}: {caution}"))
    return found


def measure(rank: Rank, last: int) -> tuple[Found, int]:
    """What is due after this step: held-out loss and answers; and which step is the last one, which
    is this one where `eval.patience` is at its end."""
    job, config, progress = rank.job, rank.config, rank.progress
    step, found = progress.step, {}
    if due(step, config.eval.every_steps, last=last) or step in job.evaluates_after:
        rank.tell("evaluation")
        with phase("evaluation"):
            found = dict(evaluate(rank))
        if step < last and progress.is_over(config.eval.patience):
            last = step
            told = ENDS_EARLY.format(config.eval.patience, progress.best_step)
            rank.emit(events.Status(told))
    looks = step < last or rank.keeps == "exact_match"  # at the end the exported model is asked
    if job.answers and looks and due(step, config.eval.generate_every_steps, last=last):
        rank.tell("answering")
        with phase("evaluation"):
            shares = answer_midway(
                config, rank.engine, job.tokenizer, rank.heldout, step, rank.emit
            )
        for share in shares.values():
            progress.record_exact_match(share)
        found |= shares
    return found, last


def log_line(rank: Rank, window: Window, lr: float, last: int) -> dict[str, Any]:
    """Metrics of the steps since the last line, over all ranks. Raises NotFinite."""
    step, clip = rank.progress.step, rank.config.optim.max_grad_norm
    line = {"lr": lr} | window.reduce(rank.engine.device, clip, step)
    line["time_left_s"] = (last - step) * line["step_time_s"]
    rank.progress.record_train(line["loss"], line["clipped_steps"])
    return line


def write_model(rank: Rank) -> float | None:
    """On rank 0, how far the written model's logits are from the engine's. Raises RunError."""
    rank.tell("export")
    job, merged = rank.job, rank.config.adapter.merge
    folder = job.run_dir / rundir.MODEL
    return export(rank.engine, job.tokenizer, folder, rank.reads.probe, merged=merged)


def conclude(
    rank: Rank, clock: StepClock, saver: Saver, difference: float | None
) -> dict[str, Any]:
    """The totals of the run. difference: of the model, where it has been written."""
    job, progress = rank.job, rank.progress
    totals = progress.totals() | clock.summary() | saver.summary()
    totals["ended_early"] = progress.step < job.total_steps
    if job.exports:
        if progress.model_step(rank.keeps) is None:
            difference = write_model(rank)
        totals["export_logit_difference"] = difference
        totals |= {"model_step": progress.model_step(rank.keeps)} if rank.keeps else {}
    rank.tell("measuring the peak")
    totals |= utilisation(rank.config, rank.engine, clock)
    rank.tell("ending the workers")
    return totals


def utilisation(config: Config, engine: Any, clock: StepClock) -> dict[str, Any]:
    """The device's peak, and the share of it that the model's FLOPs are: null if unknown.

    Of what was measured, and of what the datasheet of its GPU promises in bf16 or fp16.
    """
    peak = measure_peak(engine.device, DTYPES[config.engine.precision])
    dims = dims_of_family(engine.module.config.to_dict())
    done = clock.flops_per_second(adapted(dims, config.adapter)) if dims else None
    sheet = device_of(torch.cuda.get_device_name(engine.device)) if config.on_gpu else None
    promised = sheet.tflops * 1e12 * dist.get_world_size() if sheet else None
    return {
        "peak": peak,
        "mfu": done / peak["flops_per_second"] if done and peak else None,
        "mfu_datasheet": done / promised if done and promised else None,
    }
