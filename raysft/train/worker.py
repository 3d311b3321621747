"""The training loop that every Ray Train worker runs."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from raysft.train import spikes
from raysft.train.checkpoint.restore import restore
from raysft.train.checkpoint.save import Saver
from raysft.train.clock import StepClock
from raysft.train.engine import start_engine
from raysft.train.export import export
from raysft.train.hardware_peak import measure_peak
from raysft.train.mailbox import Request, Ticker, post
from raysft.train.memory import keep_freed_memory
from raysft.train.metrics import Progress, Window, due
from raysft.train.midway import answer_midway
from raysft.train.model_fault import told_of_the_model
from raysft.train.objectives.objective import Objective, Reads
from raysft.train.probe import exact_layout
from raysft.train.profile import Profile, phase, waiting_for, watch_communication
from raysft.train.request import RequestFlag
from raysft.train.schedule import rate_at
from raysft.train.step import StepResult, train_step

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


# What every worker runs: job, training and held-out records and mailbox, to the totals of rank 0.
Program = Callable[[WorkerJob, TokenDataset, TokenDataset, Any], dict[str, Any]]


def train_worker(
    job: WorkerJob, train: TokenDataset, heldout: TokenDataset, mailbox: Any
) -> dict[str, Any]:
    """Train, evaluate, checkpoint and export. Returns the totals of the run.

    mailbox: takes events to the driver, and its requests back.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config, objective, last = job.config.at(world_size), job.objective, job.total_steps
    emit: Emit = post(mailbox) if rank == 0 else lambda _: None
    rundir.require_shared(job.run_dir)
    longest = int(max(train.parts.max(initial=1), heldout.parts.max(initial=1)))
    longest = config.batch.seq_len if objective.draws else longest
    heads = {"scalar": objective.scalar, "critic": objective.critic}
    with told_of_the_model(job.hf_config):
        engine = start_engine(config, job.hf_config, len(job.tokenizer), emit, **heads)
        vocabulary, parts = job.hf_config.vocab_size, train.parts.shape[1]
        config = exact_layout(config, engine, vocabulary, longest, emit, parts=parts)
    records = objective.reads(config, train, heldout, rank, world_size)
    reads: Reads = records
    if config.log.profile_steps:
        watch_communication()
    if objective.prepares is not None:
        reads = objective.prepares(engine, records, job.run_dir, emit)
    progress = restore(engine, job.run_dir, job.start_from, emit) or Progress()
    last = progress.step if progress.is_over(config.eval.patience) else last
    window, clock = Window(measures=objective.measures), StepClock(engine.device)
    saver = Saver(engine, job.tokenizer, job.run_dir, emit, job.identities)
    emit(events.Started(progress.step))
    if not progress.step:
        emit(events.Metrics(0, evaluate_into(progress, objective, engine, reads, emit)))

    watched = objective.watches(engine)
    steps_to_profile = min(config.log.profile_steps, last - progress.step - 1) if rank == 0 else 0
    keeps, folder = job.exports and config.checkpoint.keep_best, job.run_dir / rundir.MODEL
    write = partial(export, engine, job.tokenizer, folder, merged=config.adapter.merge)
    difference: float | None = None  # of the model that was written, from the engine's
    request = RequestFlag(mailbox, engine.device, config.log.every_steps)
    profile = Profile(steps_to_profile, job.run_dir / "profile", engine.device)
    first = progress.step + 1  # of this process
    tick = Ticker(mailbox) if rank == 0 else lambda *_: None
    clock.start()
    for data in waiting_for("data", reads.steps(progress.step, last, engine.device)):
        request.ask(progress.step + 1)
        lr = rate_at(progress.applied_steps, config.optim.lr, config.schedule, job.total_steps)
        limit = spikes.norm_limit(progress.recent_norms, config.optim.skip_spikes)
        count = objective.counts(data)
        untried = told_of_the_model(job.hf_config) if progress.step + 1 == first else nullcontext()
        with untried:
            result = train_step(
                engine, objective, data.batches, count=count, lr=lr, norm_limit=limit
            )
        progress.advance(data, result)
        window.add(count, result, clock.stop(data, applied=result.applied))
        if config.optim.skip_spikes:
            watch_norm(progress, result, limit, config.optim.skip_spikes, emit)

        step = progress.step
        last = step if data.is_last else last
        between = step % objective.updates == 0  # where the run can be gone on with
        asked = request.answer() if step < last and between else Request.GO_ON
        if step == first:
            emit(events.FirstStep())
            if not config.on_gpu:
                keep_freed_memory()
        found: Mapping[str, float | None] = {}
        if due(step, config.eval.every_steps, last=last) or step in job.evaluates_after:
            tick(step, progress.tokens_seen, "evaluation")
            with phase("evaluation"):
                found = evaluate_into(progress, objective, engine, reads, emit)
            if step < last and progress.is_over(config.eval.patience):
                last = step
                emit(events.Status(ENDS_EARLY.format(config.eval.patience, progress.best_step)))
        looks = step < last or keeps == "exact_match"  # at the end the exported model is asked
        if job.answers and looks and due(step, config.eval.generate_every_steps, last=last):
            tick(step, progress.tokens_seen, "answering")
            with phase("evaluation"):
                told = answer_midway(config, engine, job.tokenizer, heldout, step, emit)
            for share in told.values():
                progress.record_exact_match(share)
            found = {**found, **told}
        every = config.checkpoint.every_steps
        reached = due(step, every, last=last, together=objective.updates)
        saves = every > 0 and between and (asked != Request.GO_ON or reached)
        line: dict[str, Any] = {}
        # Also at a checkpoint, where a resumed run begins to average anew.
        if step == 1 or saves or due(step, config.log.every_steps, last=last):
            line |= {"lr": lr} | window.reduce(engine.device, config.optim.max_grad_norm, step)
            line |= watched()
            line["time_left_s"] = (last - step) * line["step_time_s"]
            progress.record_train(line["loss"], line["clipped_steps"])
            window = Window(measures=objective.measures)
        if line or found:
            emit(events.Metrics(step, {**line, **found}))
        if found and step == progress.model_step(keeps):
            tick(step, progress.tokens_seen, "export")
            difference = write(reads.probe)
        if saves:
            tick(step, progress.tokens_seen, "checkpoint")
            with phase("checkpoint"):
                saver.save(progress, reads.probe)
            request.granted()
        if steps_to_profile > 0 and (rows := profile.step_ends()):
            emit(events.Profile(steps_to_profile, rows))
        if asked == Request.STOP:
            return {"interrupted": True}
        if step == last:
            break
        tick(step, progress.tokens_seen)
        clock.start()

    totals = progress.totals() | clock.summary() | saver.summary()
    totals["ended_early"] = progress.step < job.total_steps
    if job.exports:
        if progress.model_step(keeps) is None:
            tick(progress.step, progress.tokens_seen, "export")
            difference = write(reads.probe)
        totals["export_logit_difference"] = difference
        totals |= {"model_step": progress.model_step(keeps)} if keeps else {}
    tick(progress.step, progress.tokens_seen, "measuring the peak")
    totals |= utilisation(config, engine, clock)
    tick(progress.step, progress.tokens_seen, "ending the workers")
    return totals


def watch_norm(
    progress: Progress, result: StepResult, limit: float, times: float, emit: Emit
) -> None:
    """Tell of a skipped spike, and keep the norm of this step for the limits of the next ones."""
    norm = float(result.grad_norm)
    if result.spike:
        message = spikes.words(progress.step, norm, limit, times)
        emit(events.Warning(message))
    spikes.remember(progress.recent_norms, norm)


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


def evaluate_into(
    progress: Progress, objective: Objective, engine: Any, data: Reads, emit: Emit
) -> Mapping[str, float | None]:
    """Evaluate on the held-out records and keep the result in the run's progress.

    Raises NotFinite.
    """
    found = objective.evaluate(engine, data.eval_batches)
    loss = found["eval_loss"]
    if loss is not None and not math.isfinite(loss):
        message = f"the held-out loss is {loss} at step {progress.step}: lower optim.lr"
        raise NotFinite(message, progress.step)
    before = objective.caution(progress.measures_first, progress.measures_last)
    progress.record_eval(found)
    caution = objective.caution(progress.measures_first, progress.measures_last)
    if caution and not before:
        emit(events.Warning(f"step {progress.step}: {caution}"))
    return found
