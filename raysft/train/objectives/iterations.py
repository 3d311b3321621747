"""The steps of a policy gradient: answers are drawn, judged, and trained on, over and over."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysft.config.preference import Ppo
from raysft.data.batch import Batch
from raysft.data.loader import RankData, StepData
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.train.advantage import Numbers
from raysft.train.loss import inner
from raysft.train.objectives.policy import Valued, facts_of, outputs, valued
from raysft.train.rollout import Judges, Rollout, load_judges, of_all_tokens, roll_out
from raysft.train.twin import copy_weights, plain_copy


@dataclass(frozen=True)
class Iterations:
    """What a rank reads: steps on answers that are drawn when the first of them is asked for."""

    settings: Ppo
    records: RankData
    engine: Any
    twin: Any  # the policy as it was when this iteration began
    reference: Any
    judges: Judges
    emit: Emit

    @property
    def probe(self) -> Tensor:
        return self.records.probe

    @property
    def eval_batches(self) -> list[Batch]:
        return self.records.eval_batches

    def steps(self, first: int, last: int, device: torch.device) -> Iterator[StepData]:
        """Between iterations only: `first` and `last` are multiples of their updates."""
        updates = self.settings.updates
        for iteration in range(first // updates, last // updates):
            for step in self.iteration(iteration, device):
                yield step
                if step.is_last:
                    return

    def iteration(self, number: int, device: torch.device) -> Iterator[StepData]:
        settings, asked = self.settings, self.records.train.asked
        config = self.records.config
        seed, chosen = config.run.seed, self.records.records(number, config.prompts)
        prompts = [asked.prompts[index] for index in chosen]
        started = time.perf_counter()
        copy_weights(self.engine, self.twin)
        rollout = roll_out(self.twin, asked.template, prompts, self.judges, seed, number)
        drawn = time.perf_counter()
        order = np.random.default_rng([seed, number]).permutation(len(rollout.answers))
        parts = [np.sort(part) for part in np.split(order, settings.minibatches)]
        batches = [self.records.share(rollout.tokens, part) for part in parts]
        old, values, reference = self.passes(rollout, batches, device)
        scored = time.perf_counter()
        took = {"drawing_time_s": drawn - started, "scoring_time_s": scored - drawn}
        of_tokens = valued(settings, rollout, old, reference, values)
        facts = facts_of(settings, rollout, old, reference, values, of_tokens) | took
        ready = [attached(some, rollout, old, of_tokens) for some in batches]
        far = 0 < settings.stop_kl < facts["kl_to_reference"]
        if far:
            told = f"the answers are {facts['kl_to_reference']:.3g} nats from the reference"
            self.emit(events.Warning(f"{told}, beyond ppo.stop_kl: the run ends after this step"))
        for update in range(settings.updates):
            part, some = parts[update % settings.minibatches], ready[update % settings.minibatches]
            is_last = far and update == settings.updates - 1
            yield step_data(rollout, part, some, facts, is_last=is_last)

    def passes(
        self, rollout: Rollout, batches: Sequence[Sequence[Batch]], device: torch.device
    ) -> tuple[Numbers, Numbers, Numbers]:
        """Of all answers' tokens, [n] each: log P and values by the policy, log P by the reference.

        The policy's are of the packs that are trained on, by the engine itself: so the first ratio
        is exactly 1.
        """
        flat = [batch for some in batches for batch in some]
        compute = partial(outputs, self.settings)
        self.engine.eval()
        policy = of_all_tokens(partial(compute, self.engine), flat, rollout.tokens, device)
        self.engine.train()
        reference = of_all_tokens(partial(compute, self.reference), flat, rollout.tokens, device)
        return policy[0], policy[1], reference[0]


def attached(batches: Sequence[Batch], rollout: Rollout, old: Numbers, of: Valued) -> list[Batch]:
    """The same packs, with what the loss needs of each token."""
    columns = []
    for numbers in (old, of.advantages, of.returns):
        of_set = np.zeros(len(rollout.tokens.input_ids))
        of_set[rollout.tokens.loss_mask] = numbers
        columns.append(torch.from_numpy(of_set).float())
    found = []
    for batch in batches:
        assert batch.drawn is not None
        one, two, three = (column[batch.drawn.places] for column in columns)
        drawn = batch.drawn._replace(old=one, advantages=two, returns=three)
        found.append(batch._replace(drawn=drawn))
    return found


def step_data(
    rollout: Rollout, part: Any, batches: list[Batch], facts: Mapping[str, float], *, is_last: bool
) -> StepData:
    lengths, answers = rollout.tokens.lengths[part], rollout.tokens.answers[part]
    return StepData(
        batches=batches,
        tokens=int(lengths.sum()),
        supervised_tokens=int(answers.sum()),
        loss_weight=float(answers.sum()),
        pairs=int((lengths**2).sum()),
        records=len(part),
        facts=facts,
        is_last=is_last,
    )


def with_answers(
    settings: Ppo, engine: Any, reads: RankData, _run_dir: Path, emit: Emit
) -> Iterations:
    """The reference and the copy that draws have the weights that the engine starts with."""
    emit(events.Status("loading reference and rewards"))
    attention = "sdpa" if inner(engine)._supports_sdpa else "eager"
    twin, reference = plain_copy(engine, attention), plain_copy(engine)
    judges = load_judges(settings, engine.device)
    return Iterations(settings, reads, engine, twin, reference, judges, emit)
