"""A plain PyTorch loop that shares no code with raysft.

It reads the JSON itself, builds ids and labels by hand, and takes the loss from transformers: mean
over supervised tokens of one batch of records on one process.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LR, FLOOR = 2e-3, 0.1


def reference(
    model_dir: Path,
    order: list[list[int]],
    train: list[dict[str, str]],
    skip_spikes: float = 0.0,
    prompt_weight: float = 0.0,
    look: Callable[[torch.optim.Optimizer], None] = lambda _: None,
    prepares: Callable[[Any], Any] = lambda model: model,
) -> Any:
    """Losses, gradient norms and skipped steps of the plain loop over the given record indices.

    look: is called after each update, while gradients are there. prepares: the model that is
    trained, from the one in the folder.
    """
    model = without_dropout(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32))
    model = prepares(model)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    optimizer, rates = optimizer_of(model), rates_of(len(order))
    losses, norms, skipped = [], [], []
    for step, indices in enumerate(order, start=1):
        rows, labels = [], []
        for index in indices:
            record = train[index]
            question = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
            prompt = tokenizer(question + "\n")["input_ids"]
            response = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
            rows.append(prompt + response)
            labels.append([-100] * len(prompt) + response)
        width = max(map(len, rows))
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        targets = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        for group in optimizer.param_groups:
            group["lr"] = rates[step - 1 - len(skipped)]
        optimizer.zero_grad()
        output = model.train()(input_ids, attention_mask=mask, labels=targets)
        loss = output.loss
        if prompt_weight:
            logs = output.logits[:, :-1].log_softmax(-1)
            nll = -logs.gather(2, input_ids[:, 1:, None])[:, :, 0]
            weights = torch.where(targets[:, 1:] == -100, prompt_weight, 1.0) * mask[:, 1:]
            loss = (weights * nll).sum() / weights.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        if skip_spikes and len(norms) >= 16 and norm > skip_spikes * np.median(norms[-64:]):
            skipped.append(step)
        else:
            optimizer.step()
            look(optimizer)
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms, skipped


def without_dropout(model: Any) -> Any:
    model.config.attn_pdrop = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=LR,
        betas=(0.9, 0.95),
        eps=1e-8,
    )


def rates_of(steps: int) -> list[float]:
    last = steps - 2
    return [LR / 2, LR] + [
        LR * (FLOOR + (1 - FLOOR) / 2 * (1 + math.cos(math.pi * t / last)))
        for t in range(1, last + 1)
    ]


def drawn(records: Path) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The training records of `tiny_config`, and those that the sampler draws for five steps."""
    lines = json.loads(records.read_text())
    held_out = set(np.random.default_rng(0).permutation(64)[:6].tolist())
    train = [record for index, record in enumerate(lines) if index not in held_out]
    epoch = np.random.default_rng([0, 0]).permutation(58).tolist()
    return train, [epoch[8 * step : 8 * step + 8] for step in range(5)]


def five_steps(model_dir: Path, records: Path, **options: Any) -> Any:
    """The reference over the very records that the sampler draws for `tiny_config`.

    options: of `reference`.
    """
    train, order = drawn(records)
    return reference(model_dir, order, train, **options)
