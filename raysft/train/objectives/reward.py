"""A reward model: a number for an answer, learnt from which of two is the better one."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raysft.config.preference import RewardModel
from raysft.data.batch import Batch
from raysft.data.loader import RankData
from raysft.train.objectives.objective import Objective, Sums
from raysft.train.objectives.pairs import answer_lengths, is_right, pairs_of

MEASURES = ("accuracy", "reward_margin", "reward_chosen", "reward_rejected")
REPORTS = (
    "eval_loss", "eval_accuracy", "eval_reward_margin", "eval_calibration_error",
    "eval_reward_mean", "eval_reward_spread", "eval_length_correlation",
)  # fmt: skip
BINS = 10  # of probabilities, for the calibration


def pair_loss(rewards: Tensor, margins: Tensor, settings: RewardModel) -> Tensor:
    """[P], of the rewards [P, 2] of chosen and rejected answers.

    Bradley and Terry 1952: -log sigmoid(r_chosen - r_rejected), less a margin where the pair has
    one (Touvron et al. 2023, equation 2), and center (r_chosen + r_rejected)^2, which fixes what
    the differences leave open (Eisenstein et al. 2023, equation 3).
    """
    gap = rewards[:, 0] - rewards[:, 1]
    wanted = margins if settings.margins else 0.0
    return -F.logsigmoid(gap - wanted) + settings.center * rewards.sum(1) ** 2


def pair_rewards(model: Any, batch: Batch) -> Tensor:
    """Of P pairs, fp32 [P, 2]: at the last token of each half, which ends its answer."""
    assert batch.pairs is not None
    rewards: Tensor = model(input_ids=batch.input_ids, tokens=batch.pairs.ends, **batch.inputs)
    return rewards.view(-1, 2)


def loss(settings: RewardModel, model: Any, batch: Batch, _gradient_scale: float) -> Sums:
    assert batch.pairs is not None
    rewards = pair_rewards(model, batch)
    losses = pair_loss(rewards, batch.pairs.margins, settings)
    found = rewards.detach()
    margins = found[:, 0] - found[:, 1]
    columns = torch.stack([is_right(margins), margins, *found.T])
    return Sums(losses.sum(), columns.sum(1))


@torch.no_grad()
def evaluate(
    settings: RewardModel, engine: Any, batches: Sequence[Batch]
) -> dict[str, float | None]:
    """Of the rewards of all pairs of all ranks, which each rank then has."""
    engine.eval()
    found = [torch.zeros(0, 5, dtype=torch.float64, device=engine.device)]
    for batch in batches:
        on_device = batch.to(engine.device)
        assert on_device.pairs is not None
        rewards = pair_rewards(engine, on_device)
        losses = pair_loss(rewards, on_device.pairs.margins, settings)
        columns = [losses[:, None], rewards, answer_lengths(on_device)]
        found.append(torch.cat(columns, dim=1).double())
    engine.train()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, torch.cat(found).cpu().numpy())
    rows = np.concatenate(everyone)
    return facts(rows[:, 0], rows[:, 1:3], rows[:, 3:5])


def facts(
    losses: NDArray[np.float64], rewards: NDArray[np.float64], lengths: NDArray[np.float64]
) -> dict[str, float | None]:
    """What REPORTS name, of H pairs: losses [H], rewards [H, 2], answers' tokens [H, 2].

    The calibration error is the mean distance between how sure the model is of a pair, sigmoid of
    |r_chosen - r_rejected|, and how often it is right, over ten bins (Guo et al. 2017). The length
    correlation is Pearson's, of all answers' rewards and tokens.
    """
    if not len(losses):
        return dict.fromkeys(REPORTS)
    gaps = rewards[:, 0] - rewards[:, 1]
    right = (gaps > 0) + 0.5 * (gaps == 0)
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    bins = np.minimum((2 * (sure - 0.5) * BINS).astype(int), BINS - 1)
    gap_of_bins = [abs((right - sure)[bins == b].sum()) for b in range(BINS)]
    varies = rewards.std() > 0 and lengths.std() > 0
    values = (
        losses.mean(), right.mean(), gaps.mean(), sum(gap_of_bins) / len(losses), rewards.mean(),
        rewards.std(), np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1] if varies else 0.0,
    )  # fmt: skip
    return dict(zip(REPORTS, map(float, values), strict=True))


def reward(settings: RewardModel) -> Objective:
    return Objective(
        name="reward",
        reads=RankData,
        loss=partial(loss, settings),
        counts=pairs_of,
        evaluate=partial(evaluate, settings),
        reports=REPORTS,
        measures=MEASURES,
        pairs=True,
        scalar=True,
    )
