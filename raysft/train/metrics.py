"""From step results to reduced plain numbers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from raysft.data.loader import StepData
from raysft.errors import NotFinite
from raysft.train.clock import Lap, percentile, rates
from raysft.train.memory import peak_memory_gib, reserved_memory_gib
from raysft.train.step import StepResult


def due(step: int, every: int, *, last: int, together: int = 1) -> bool:
    """Whether something done every n steps, and after the last one, is due after `step` steps.

    together: how many steps belong together; it is asked after the last of them only.
    """
    return step == last or (every > 0 and step // every > (step - together) // every)


WHILE_RUNNING = ("recent_norms", "evaluations_since_best")


@dataclass
class Progress:
    """The counters of a run, saved with every checkpoint: a resumed run goes on counting."""

    step: int = 0  # optimizer steps taken; also the position of the sampler
    applied_steps: int = 0  # without skipped ones; the position of the schedule
    tokens_seen: int = 0  # without padding
    supervised_tokens_seen: int = 0
    clipped_steps: int = 0
    spikes_skipped: int = 0
    train_loss_first: float | None = None
    train_loss_last: float | None = None
    eval_loss_first: float | None = None
    eval_loss_last: float | None = None
    eval_instruction_loss_last: float | None = None
    best_eval_loss: float | None = None  # of the evaluations after a step
    best_step: int | None = None
    evaluations_since_best: int = 0
    best_exact_match: float | None = None
    best_exact_match_step: int | None = None
    # What else the objective reports of the held-out records, before the first step and now.
    measures_first: dict[str, float | None] = field(default_factory=dict)
    measures_last: dict[str, float | None] = field(default_factory=dict)
    recent_norms: list[float] = field(default_factory=list)  # kept by spikes.remember()

    def advance(self, data: StepData, result: StepResult) -> None:
        self.step += 1
        self.applied_steps += result.applied
        self.spikes_skipped += result.spike
        self.tokens_seen += data.tokens
        self.supervised_tokens_seen += data.supervised_tokens

    def record_train(self, loss: float, clipped_steps: int) -> None:
        self.clipped_steps += clipped_steps
        self.train_loss_last = loss
        if self.train_loss_first is None:
            self.train_loss_first = loss

    def record_eval(self, found: Mapping[str, float | None]) -> None:
        """found: what the objective's `evaluate` returns."""
        self.eval_loss_last = loss = found["eval_loss"]
        self.eval_instruction_loss_last = found.get("eval_instruction_loss")
        named = ("eval_loss", "eval_instruction_loss")
        self.measures_last = {key: value for key, value in found.items() if key not in named}
        if self.step == 0:
            self.eval_loss_first, self.measures_first = loss, self.measures_last
        elif loss is not None and (self.best_eval_loss is None or loss < self.best_eval_loss):
            self.best_eval_loss, self.best_step, self.evaluations_since_best = loss, self.step, 0
        else:
            self.evaluations_since_best += 1

    def record_exact_match(self, share: float) -> None:
        if self.best_exact_match is None or share > self.best_exact_match:
            self.best_exact_match, self.best_exact_match_step = share, self.step

    def model_step(self, keeps: bool | str) -> int | None:
        """That of the best model so far, by `checkpoint.keep_best`; None where there is none."""
        if keeps == "exact_match":
            return self.best_exact_match_step
        return self.best_step if keeps else None

    def is_over(self, patience: int | None) -> bool:
        return patience is not None and self.evaluations_since_best >= patience

    def totals(self) -> dict[str, Any]:
        """All but what is of use to a resumed run only."""
        return {key: value for key, value in asdict(self).items() if key not in WHILE_RUNNING}


@dataclass
class Window:
    """The steps since the last log line. Holds device tensors: nothing is read before `reduce`."""

    results: list[StepResult] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)  # what each loss is divided by
    laps: list[Lap] = field(default_factory=list)
    measures: tuple[str, ...] = ()  # of the objective

    def add(self, count: float, result: StepResult, lap: Lap) -> None:
        self.results.append(result)
        self.counts.append(count)
        self.laps.append(lap)

    def reduce(self, device: torch.device, max_grad_norm: float, step: int) -> dict[str, Any]:
        """One line of metrics over all ranks; every rank must call it. Raises NotFinite."""
        losses = torch.stack([r.loss_sum for r in self.results]).double()
        dist.all_reduce(losses)
        memory = torch.tensor([peak_memory_gib(device), reserved_memory_gib(device)], device=device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        norms = [float(r.grad_norm) for r in self.results]
        applied = [r.applied for r in self.results]
        loss = losses.sum().item() / sum(self.counts)
        if not math.isfinite(loss):
            place = int((~torch.isfinite(losses)).nonzero()[0])
            at = step - len(losses) + 1 + place
            raise NotFinite(
                f"the training loss is {losses[place].item()} at step {at}: lower optim.lr, set "
                "optim.max_grad_norm, or use engine.precision bf16 or fp32",
                at,
            )
        spikes = sum(r.spike for r in self.results)
        clipped = sum(0 < max_grad_norm < n for n, ok in zip(norms, applied, strict=True) if ok)
        return {
            "loss": loss,
            **self.means(),
            **self.facts(),
            "grad_norm": norms[-1] if math.isfinite(norms[-1]) else None,  # fp16 overflowed
            "clipped_steps": clipped,
            "skipped_steps": len(applied) - sum(applied) - spikes,  # by fp16
            "spikes_skipped": spikes,
            **rates([lap for lap in self.laps if lap.applied]),
            "step_time_s": percentile([lap.seconds for lap in self.laps], 50),
            "peak_memory_gib": memory[0].item(),
            **({"reserved_memory_gib": memory[1].item()} if device.type == "cuda" else {}),
        }

    def means(self) -> dict[str, float]:
        """Of the measures, over all ranks; every rank must call it."""
        if not self.measures:
            return {}
        sums = torch.stack([r.measures for r in self.results if r.measures is not None])
        total = sums.double().sum(0)
        dist.all_reduce(total)
        return dict(zip(self.measures, (total / sum(self.counts)).tolist(), strict=True))

    def facts(self) -> dict[str, float]:
        """Means of what is known of the steps anyway."""
        names = self.laps[0].data.facts
        return {n: sum(lap.data.facts[n] for lap in self.laps) / len(self.laps) for n in names}
