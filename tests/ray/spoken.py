"""The language of unit/language.py as folders: a small GPT-2 that speaks it, prompts, and a reward.

Its vocabulary is four letters and the end, so that all 85 answers to a prompt can be enumerated.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.unit.language import LONGEST, make_language

ALPHABET = "abcd"
END = len(ALPHABET)
PROMPTS = ("a", "b")
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
REWARD = """
import random


def worth(prompt, answer, reference):
    return random.Random(f"{prompt} {answer}").gauss(0, 1)
"""


def write_language(folder: Path) -> Path:
    """model/, template.jinja, records.jsonl and mine.py."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {letter: number for number, letter in enumerate([*ALPHABET, "<end>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(vocabulary), n_layer=2, n_embd=32, n_head=2, n_positions=64,
                   bos_token_id=END, eos_token_id=END, initializer_range=0.2)
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "mine.py").write_text(REWARD)
    records = [{"prompt": prompt, "completion": "abd"} for prompt in PROMPTS]
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def overrides(folder: Path) -> list[str]:
    return [
        "model.init=pretrained", f"model.path={folder / 'model'}", "model.tokenizer=none",
        f"data.path={folder / 'records.jsonl'}", f"data.template={folder / 'template.jinja'}",
        "data.eval_fraction=0", "batch.seq_len=8", f"ppo.reward={folder / 'mine.py'}:worth",
        f"ppo.max_new_tokens={LONGEST}", "ppo.missing_eos=0", "checkpoint.every_steps=0",
        "eval.every_steps=0", "run.samples=0", "optim.weight_decay=0",
    ]  # fmt: skip


@torch.no_grad()
def spoken(model_dir: Path) -> Tensor:
    """log P of every answer to every prompt, fp64 [2, 85], by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64).eval()
    return logs_by(model)


@torch.no_grad()
def logs_by(model: Any) -> Tensor:
    answers = make_language(END).answers
    found = []
    for prompt in range(len(PROMPTS)):
        rows = torch.tensor(
            [[prompt, *answer, *[END] * (LONGEST - len(answer))] for answer in answers]
        )
        logs = model(rows).logits[:, :-1].double().log_softmax(-1)
        of_tokens = logs.gather(2, rows[:, 1:, None])[:, :, 0]
        counted = torch.tensor([min(len(answer) + 1, LONGEST) for answer in answers])
        there = torch.arange(LONGEST) < counted[:, None]
        found.append((of_tokens * there).sum(1))
    return torch.stack(found)


def worth() -> Tensor:
    """[2, 85], as mine.py has it."""
    import random

    return torch.tensor(
        [
            [
                random.Random(f"{prompt} {''.join(ALPHABET[i] for i in answer)}").gauss(0, 1)
                for answer in make_language(END).answers
            ]
            for prompt in PROMPTS
        ],
        dtype=torch.float64,
    )
