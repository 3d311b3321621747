"""The answers of an iteration: drawn by all ranks, a share each, and known to all of them.

From here on they are a token set like any other: what packs, counts and trains records takes it as
it is, and whatever is computed over all answers needs no rank to ask another.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from raysft.config.preference import Ppo
from raysft.data.batch import Batch
from raysft.data.dataset import TokenDataset
from raysft.data.record_prompts import Prompt
from raysft.data.template import Template
from raysft.errors import UserError
from raysft.model.rewards import Answered, Reward, load_reward
from raysft.model.sample import Sampling, Written, keys_of, words, write

Numbers = NDArray[np.float64]


class Judged(NamedTuple):
    """An answer, and what it is worth."""

    written: Written
    text: str
    reward: float  # of all rewards together, less what a missing end token costs
    checked: float  # by ppo.checker; 0 where there is none


class Rollout(NamedTuple):
    """N answers, group by group, the same on every rank."""

    tokens: TokenDataset  # prompt and answer of each
    answers: list[Judged]

    @property
    def rewards(self) -> Numbers:
        return np.array([one.reward for one in self.answers])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each answer, its end token included."""
        return self.tokens.answers

    def of_tokens(self, name: str) -> Numbers:
        """A column of Written, of all answers' tokens end to end."""
        columns = [getattr(one.written, name) for one in self.answers]
        return np.concatenate(columns).astype(np.float64)


@dataclass(frozen=True)
class Judges:
    settings: Ppo
    rewards: Sequence[tuple[Reward, float]]  # with their weights
    checker: Reward | None

    def judge(
        self, template: Template, prompts: Sequence[Prompt], written: Sequence[Sequence[Written]]
    ) -> list[Judged]:
        """The answers to all prompts, end to end. Raises UserError where a reward fails."""
        pairs = [(p, one) for p, group in zip(prompts, written, strict=True) for one in group]
        texts = [words(template, one).text for _, one in pairs]
        answered = [
            Answered(prompt.turns, text, prompt.reference)
            for (prompt, _), text in zip(pairs, texts, strict=True)
        ]
        worth = sum(weight * np.array(reward(answered)) for reward, weight in self.rewards)
        missing = np.array([not one.ended for _, one in pairs])
        rewards = np.asarray(worth - self.settings.missing_eos * missing).tolist()
        checked = self.checker(answered) if self.checker else [0.0] * len(pairs)
        written_flat = [one for _, one in pairs]
        return [Judged(*row) for row in zip(written_flat, texts, rewards, checked, strict=True)]


def load_judges(settings: Ppo, device: torch.device) -> Judges:
    """On this rank. Raises UserError."""
    rewards = [(load_reward(name, "ppo.reward", device), w) for name, w in settings.rewards]
    checker = load_reward(settings.checker, "ppo.checker", device) if settings.checker else None
    return Judges(settings, rewards, checker)


def roll_out(
    twin: Any,
    template: Template,
    prompts: Sequence[Prompt],
    judges: Judges,
    seed: int,
    iteration: int,
) -> Rollout:
    """`ppo.group` answers to each prompt, by a plain model. Every rank must call it.

    Ranks take batches of prompts in turn, each always of the same ones, and ask nothing of one
    another before all have written. Raises UserError, on all of them, where a reward fails.
    """
    settings = judges.settings
    how = Sampling(settings.group, settings.temperature, settings.max_new_tokens)
    size = settings.prompts_at_once
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine: dict[int, list[Judged]] = {}
    problem = ""
    try:
        for begin in range(0, len(prompts), size)[rank::world_size]:
            some = prompts[begin : begin + size]
            places = begin + np.arange(len(some))
            keys = keys_of(seed, iteration, places[:, None], np.arange(settings.group))
            written = write(twin, [one.ids for one in some], keys, how, template.stop_ids)
            mine[begin] = judges.judge(template, some, written)
    except UserError as error:  # the others wait for this rank: they must hear of it
        problem = str(error)
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, (problem, mine))
    if problems := [found for found, _ in everyone if found]:
        raise UserError(problems[0])
    shares = {begin: judged for _, share in everyone for begin, judged in share.items()}
    answers = [one for begin in sorted(shares) for one in shares[begin]]
    rows = [prompt.ids for prompt in prompts for _ in range(settings.group)]
    return Rollout(token_set(rows, [one.written.ids for one in answers]), answers)


def token_set(prompts: Sequence[list[int]], answers: Sequence[NDArray[np.int64]]) -> TokenDataset:
    """Of prompt and answer of each; the answers are trained."""
    counts = np.array([len(answer) for answer in answers])
    leads = np.array([len(prompt) for prompt in prompts])
    lengths = leads + counts
    parts = [part for row in zip(prompts, answers, strict=True) for part in row]
    flags = np.tile([False, True], len(prompts))
    return TokenDataset(
        input_ids=np.concatenate(parts).astype(np.int32),
        loss_mask=np.repeat(flags, np.stack([leads, counts], axis=1).ravel()),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        answers=counts,
        source=np.zeros(len(lengths), np.uint16),
        drawn=True,
    )


@torch.no_grad()
def of_all_tokens(
    compute: Callable[[Batch], Tensor], batches: Iterable[Batch], tokens: TokenDataset, device: Any
) -> Numbers:
    """[2, n] for the n tokens of all answers end to end, on every rank; each computes its share.

    compute: of a batch, [2, m] for its m tokens.
    """
    total = torch.zeros(2, len(tokens.input_ids), dtype=torch.float64, device=device)
    for batch in batches:
        on_device = batch.to(device)
        assert on_device.drawn is not None
        total[:, on_device.drawn.places] = compute(on_device).double()
    dist.all_reduce(total)
    of_answers: Numbers = total.cpu().numpy()[:, tokens.loss_mask]
    return of_answers
