"""The training loop that every Ray Train worker runs."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from raysft.data.dataset import TokenDataset
from raysft.runs import events
from raysft.train import spikes
from raysft.train.checkpoint.save import Saver
from raysft.train.clock import StepClock
from raysft.train.mailbox import Request
from raysft.train.memory import keep_freed_memory
from raysft.train.metrics import Window, due
from raysft.train.model_fault import told_of_the_model
from raysft.train.profile import phase, waiting_for
from raysft.train.rank import (
    Rank,
    WorkerJob,
    conclude,
    evaluate,
    get_ready,
    log_line,
    measure,
    profile_of,
    write_model,
)
from raysft.train.request import RequestFlag
from raysft.train.schedule import rate_at
from raysft.train.step import StepResult, train_step

# What every worker runs: job, training and held-out records and mailbox, to the totals of rank 0.
Program = Callable[[WorkerJob, TokenDataset, TokenDataset, Any], dict[str, Any]]


def train_worker(
    job: WorkerJob, train: TokenDataset, heldout: TokenDataset, mailbox: Any
) -> dict[str, Any]:
    """Train, evaluate, checkpoint and export. Returns the totals of the run.

    mailbox: takes events to the driver, and its requests back.
    """
    rank = get_ready(job, train, heldout, mailbox)
    config, objective, engine, progress = rank.config, job.objective, rank.engine, rank.progress
    last = progress.step if progress.is_over(config.eval.patience) else job.total_steps
    window, clock = Window(measures=objective.measures), StepClock(engine.device)
    saver = Saver(engine, job.tokenizer, job.run_dir, rank.emit, job.identities)
    rank.emit(events.Started(progress.step))
    if not progress.step:
        rank.emit(events.Metrics(0, evaluate(rank)))

    watched = objective.watches(engine)
    request = RequestFlag(mailbox, engine.device, config.log.every_steps)
    profile = profile_of(rank, last)
    difference: float | None = None  # of the model that was written, from the engine's
    first = progress.step + 1  # of this process
    clock.start()
    for data in waiting_for("data", rank.reads.steps(progress.step, last, engine.device)):
        request.ask(progress.step + 1)
        lr = rate_at(progress.applied_steps, config.optim.lr, config.schedule, job.total_steps)
        limit = spikes.norm_limit(progress.recent_norms, config.optim.skip_spikes)
        count = objective.counts(data)
        untried = progress.step + 1 == first
        with told_of_the_model(job.hf_config) if untried else nullcontext():
            result = train_step(
                engine, objective, data.batches, count=count, lr=lr, norm_limit=limit
            )
        progress.advance(data, result)
        window.add(count, result, clock.stop(data, applied=result.applied))
        if config.optim.skip_spikes:
            watch_norm(rank, result, limit)

        step = progress.step
        last = step if data.is_last else last
        between = step % objective.updates == 0  # where the run can be gone on with
        asked = request.answer() if step < last and between else Request.GO_ON
        if step == first:
            rank.emit(events.FirstStep())
            if not config.on_gpu:
                keep_freed_memory()
        found, last = measure(rank, last)
        every = config.checkpoint.every_steps
        reached = due(step, every, last=last, together=objective.updates)
        saves = every > 0 and between and (asked != Request.GO_ON or reached)
        line: dict[str, Any] = {}
        # Also at a checkpoint, where a resumed run begins to average anew.
        if step == 1 or saves or due(step, config.log.every_steps, last=last):
            line = {**log_line(rank, window, lr, last), **watched()}
            window = Window(measures=objective.measures)
        if line or found:
            rank.emit(events.Metrics(step, {**line, **found}))
        if found and step == progress.model_step(rank.keeps):
            difference = write_model(rank)
        if saves:
            rank.tell("checkpoint")
            with phase("checkpoint"):
                saver.save(progress, rank.reads.probe)
            request.granted()
        if rows := profile.step_ends():
            rank.emit(events.Profile(profile.num_steps, rows))
        if asked == Request.STOP:
            return {"interrupted": True}
        if step == last:
            break
        rank.tell()
        clock.start()
    return conclude(rank, clock, saver, difference)


def watch_norm(rank: Rank, result: StepResult, limit: float) -> None:
    """Tell of a skipped spike, and keep the norm of this step for the limits of the next ones."""
    progress, times = rank.progress, rank.config.optim.skip_spikes
    norm = float(result.grad_norm)
    if result.spike:
        rank.emit(events.Warning(spikes.words(progress.step, norm, limit, times)))
    spikes.remember(progress.recent_norms, norm)
