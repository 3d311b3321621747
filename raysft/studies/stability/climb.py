"""What a worker does in the place of one training run: several, at rising learning rates."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from raysft.config.schema import Config
from raysft.data.batch import Batch
from raysft.data.dataset import TokenDataset
from raysft.errors import NotFinite
from raysft.runs import events
from raysft.studies.divergence import has_diverged
from raysft.train.mailbox import post
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT
from raysft.train.rank import WorkerJob
from raysft.train.second_moment import watch_moments
from raysft.train.worker import train_worker


def climb(
    ladders: Sequence[Sequence[Config]],
    job: WorkerJob,
    train: TokenDataset,
    heldout: TokenDataset,
    mailbox: Any,
) -> dict[str, Any]:
    """For each ladder train once with each config, in their order, until a run diverges.

    All in the same workers, which take far longer to start than small runs to train. Each run has
    the start that it would have alone, and posts an event when it ends.
    """
    emit = post(mailbox) if dist.get_rank() == 0 else lambda _: None
    for number, configs in enumerate(ladders):
        for config in configs:
            gc.collect()  # the engine of the run before; what is left need not be searched again
            gc.freeze()
            one = replace(job, config=config, objective=objective_for(job.hf_config.vocab_size))
            end: dict[str, Any] = {"lr": config.optim.lr, "diverged": False, "why": None,
                                   "diverged_step": None}  # fmt: skip
            try:
                totals = train_worker(one, train, heldout, mailbox)
            except NotFinite as error:
                end |= {"diverged": True, "why": str(error), "diverged_step": error.step}
                totals = {}
            if "interrupted" in totals:
                return totals
            last = end["diverged"] or config is configs[-1]
            emit(events.Case({"ladder": number, "last": last, "end": end}, "stability"))
            if last:
                break
    return {}


def objective_for(vocabulary: int) -> Objective:
    """Supervised fine-tuning of one run, which ends it where it has diverged."""
    losses: list[float] = []  # held out, that before the first step first

    def evaluate(engine: Any, batches: Sequence[Batch]) -> dict[str, float | None]:
        found = SFT.evaluate(engine, batches)
        loss = found["eval_loss"]
        assert loss is not None  # records are held out, see `point_runs.check_heldout`
        losses.append(loss)
        if has_diverged(loss, losses[0], vocabulary):
            raise NotFinite(
                f"the held-out loss is {loss:.3g}, and was {losses[0]:.3g} before training",
                engine.global_steps,
            )
        return dict(found)

    return Objective(
        name="stability",
        reads=SFT.reads,
        loss=SFT.loss,
        counts=SFT.counts,
        evaluate=evaluate,
        reports=SFT.reports,
        watches=watch_moments,
    )
