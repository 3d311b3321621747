"""What is measured of a finished model: losses by the token, and its answers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysft.config.schema import Config
from raysft.data.batch import pad
from raysft.data.dataset import TokenDataset
from raysft.model.answers import answered, questions
from raysft.model.generate import load
from raysft.train.loss import token_nll

AT_ONCE = 16  # records
SAMPLED = 512  # held-out tokens whose losses are kept one by one


def measured(
    config: Config, model_dir: Path, train: TokenDataset, heldout: TokenDataset
) -> dict[str, Any]:
    """Losses of the exported model's answers, nats a token, and its exact match.

    train_loss: of the training records, as many of them as are held out. token_losses: of some
    held-out tokens, which are the same for every model.
    """
    torch.set_num_threads(config.scaling.cpus_per_worker)
    model, template = load(str(model_dir))
    nll = answers_nll(model, heldout, len(heldout))
    some = np.random.default_rng(0).permutation(len(nll))[:SAMPLED]
    asked = questions(heldout, config.eval.exact_match_records)
    found = answered(model, template, asked) if asked else []
    hits = sum(one.answer == one.reference for one in found)
    return {
        "eval_loss": float(nll.mean()),
        "train_loss": float(answers_nll(model, train, len(heldout)).mean()),
        "exact_match": hits / len(found) if found else None,
        "asked": len(found),
        "parameters": model.num_parameters(),
        "token_losses": [round(float(one), 4) for one in nll[some]],
    }


@torch.no_grad()
def answers_nll(model: Any, records: TokenDataset, count: int) -> NDArray[np.float32]:
    """-log P of every answer token of the first `count` records, nats [n]."""
    found: list[NDArray[np.float32]] = []
    listed = np.arange(min(count, len(records)))
    for begin in range(0, len(listed), AT_ONCE):
        batch = pad(records, listed[begin : begin + AT_ONCE]).to(model.device)
        nll = token_nll(model, batch, batch.scored[batch.in_answer])
        found.append(nll.cpu().numpy())
    return np.concatenate(found)
