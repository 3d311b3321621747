"""Preference losses in a plain PyTorch loop that shares no code with raysft.

One batch of pairs on one process, all logits at once, the reference a second copy of the model.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.ray.reference import drawn, optimizer_of, rates_of, without_dropout

BETA = 0.1


def write_pairs(records: Path) -> Path:
    """Pairs of the tiny records beside them: the right answer, and another record's."""
    lines = json.loads(records.read_text())
    pairs = [
        {"instruction": line["instruction"], "input": line["input"], "chosen": line["output"],
         "rejected": other["output"], "margin": 0.25 * (number % 3)}
        for number, (line, other) in enumerate(zip(lines, [*lines[1:], lines[0]], strict=True))
    ]  # fmt: skip
    path = records.with_name("pairs.json")
    path.write_text(json.dumps(pairs))
    return path


def rows_of(tokenizer: Any, pair: dict[str, str], name: str) -> tuple[list[int], int]:
    """Token ids of a half, and how many of them are the prompt's."""
    question = pair["instruction"] + ("\n" + pair["input"] if pair["input"] else "")
    prompt = tokenizer(question + "\n")["input_ids"]
    return [*prompt, *tokenizer(pair[name])["input_ids"], tokenizer.eos_token_id], len(prompt)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def answers(model: Any, tokenizer: Any, pairs: list[dict[str, str]], name: str) -> Any:
    """Log-probability of each answer [P], and its tokens [P]."""
    rows, leads = zip(*(rows_of(tokenizer, pair, name) for pair in pairs), strict=True)
    ids, mask = padded(list(rows))
    logs = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    of_tokens = logs.gather(2, ids[:, 1:, None])[:, :, 0]
    places = torch.arange(1, ids.shape[1])
    trained = mask[:, 1:].bool() & (places >= torch.tensor(leads)[:, None])
    return (of_tokens * trained).sum(1), trained.sum(1)


def dpo_losses(
    model: Any, reference: Any, tokenizer: Any, pairs: list[dict[str, str]], kind: str
) -> Tensor:
    chosen, tokens = answers(model, tokenizer, pairs, "chosen")
    rejected, _ = answers(model, tokenizer, pairs, "rejected")
    with torch.no_grad():
        reference_chosen, _ = answers(reference, tokenizer, pairs, "chosen")
        reference_rejected, _ = answers(reference, tokenizer, pairs, "rejected")
    logits = (chosen - rejected) - (reference_chosen - reference_rejected)
    if kind == "ipo":
        return (logits - 1 / (2 * BETA)) ** 2
    if kind == "smoothed":
        right, wrong = torch.sigmoid(BETA * logits), torch.sigmoid(-BETA * logits)
        return -(0.9 * right.log() + 0.1 * wrong.log())
    losses = torch.log1p(torch.exp(-BETA * logits))
    return losses - chosen / tokens if kind == "dpo with NLL" else losses


class Rewards(torch.nn.Module):
    """The body of a causal model, and a head that is drawn by seed 0."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        width = body.config.n_embd
        self.head = torch.nn.Linear(width, 1, bias=False)
        drawn_head = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        self.head.weight.data = drawn_head / math.sqrt(width + 1)

    def forward(self, rows: list[list[int]]) -> Tensor:
        ids, mask = padded(rows)
        hidden = self.body(ids, attention_mask=mask).last_hidden_state
        last = [len(row) - 1 for row in rows]
        return self.head(hidden[range(len(rows)), last])[:, 0]


def reward_losses(
    model: Rewards, tokenizer: Any, pairs: list[dict[str, Any]], center: float
) -> tuple[Tensor, float]:
    """And the share of the pairs whose chosen answer is ahead."""
    chosen, rejected = (
        model([rows_of(tokenizer, pair, name)[0] for pair in pairs])
        for name in ("chosen", "rejected")
    )
    margins = torch.tensor([pair["margin"] for pair in pairs])
    losses = torch.log1p(torch.exp(-(chosen - rejected - margins)))
    right = sum(float(a > b) + 0.5 * float(a == b) for a, b in zip(chosen, rejected, strict=True))
    return losses + center * (chosen + rejected) ** 2, right / len(pairs)


def five_steps(
    model_dir: Path,
    file: Path,
    kind: str,
    prepares: Callable[[Any], Any] = lambda model: model,
) -> tuple[list[float], list[float], list[float]]:
    """Losses, gradient norms and, of rewards, accuracies over the pairs that the sampler draws for
    `tiny_config`. prepares: the model that is trained, from the one in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = without_dropout(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32))
    reference = copy.deepcopy(model).eval()
    model = Rewards(model.transformer) if kind == "reward" else prepares(model)
    pairs, order = drawn(file)
    optimizer = optimizer_of(model)
    losses, norms, accuracies = [], [], []
    for rate, numbers in zip(rates_of(len(order)), order, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        some = [pairs[number] for number in numbers]
        if kind == "reward":
            of_pairs, right = reward_losses(model.train(), tokenizer, some, 0.05)
            loss = of_pairs.mean()
            accuracies.append(right)
        else:
            loss = dpo_losses(model.train(), reference, tokenizer, some, kind).mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, accuracies
