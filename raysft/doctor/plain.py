"""Training as a plain PyTorch loop: what `prove` holds raysft's own training against.

Nothing of raysft's data or training is used here. One process computes on the CPU in fp32; ids and
labels are built by hand, and attention and loss are those of transformers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Record = Mapping[str, str]  # with instruction, input and output

# Twice the rate has spikes with large batches, which would magnify float noise.
LR, WARMUP_STEPS, FLOOR = 1e-3, 2, 0.1  # the cosine ends at FLOOR x LR
BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0
SEED = 0  # of the order of the records


class Curve(NamedTuple):
    """A number for each step."""

    losses: list[float]
    norms: list[float]  # of the gradient before clipping


def write_model(folder: Path, tokenizer: Any, positions: int) -> None:
    """An untrained GPT-2 and its tokenizer, as a Hugging Face folder."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    # Wide enough that ZeRO-3 partitions the matrices: it keeps parameters below 1e5 elements whole.
    shape = {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_positions": positions}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **shape, **no_dropout
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # Every product written out, where raysft takes fused kernels.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def train(model: Any, tokenizer: Any, records: Sequence[Record], steps: int) -> Curve:
    """Train `model` in place for one epoch, of so many steps."""
    curve = Curve([], [])
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY},
         {"params": vectors, "weight_decay": 0.0}],
        lr=LR, betas=BETAS, eps=EPS,
    )  # fmt: skip
    order = np.random.default_rng([SEED, 0]).permutation(len(records))
    model.train()
    shares = np.split(order, steps)
    for indices, rate in zip(shares, rates(steps), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = model(**padded(tokenizer, [records[index] for index in indices])).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        curve.losses.append(loss.item())
        curve.norms.append(norm.item())
    return curve


@torch.no_grad()
def mean_loss(model: Any, tokenizer: Any, records: Sequence[Record]) -> float:
    """Over the supervised tokens of all records."""
    return float(model.eval()(**padded(tokenizer, records)).loss)


def rates(steps: int) -> Iterator[float]:
    """Linear warmup, whose last step has LR, then a cosine, whose last step has FLOOR x LR."""
    yield from (LR * step / WARMUP_STEPS for step in range(1, WARMUP_STEPS + 1))
    after = steps - WARMUP_STEPS
    for step in range(1, after + 1):
        yield LR * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * step / after)) / 2)


def padded(tokenizer: Any, records: Sequence[Record]) -> dict[str, Tensor]:
    """One batch: a row a record, with labels on the answer and the token that ends it."""
    rows, labels = [], []
    for record in records:
        question = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
        prompt = tokenizer(question + "\n")["input_ids"]
        answer = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
        rows.append(prompt + answer)
        labels.append([-100] * len(prompt) + answer)
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }
