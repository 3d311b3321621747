"""Greedy answers from a trained Hugging Face folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysft.data.formats import Message
from raysft.data.template import TEMPLATES, to_segments
from raysft.data.tokenize import encode_prompt

RECIPE = "raysft.json"  # in a model folder: how its prompts were written
BATCH_SIZE = 32


def write_recipe(model_dir: Path, template: str) -> None:
    (model_dir / RECIPE).write_text(json.dumps({"template": template}, indent=2) + "\n")


def read_template(model_dir: Path) -> str:
    """The template a model was trained with; "plain" for a model that raysft did not train."""
    recipe = model_dir / RECIPE
    return str(json.loads(recipe.read_text())["template"]) if recipe.exists() else "plain"


def answer(
    model: Any, tokenizer: Any, instructions: Sequence[str], template: str, max_new_tokens: int
) -> list[str]:
    """One greedy answer an instruction, without the end token."""
    import torch

    prompts = [
        encode_prompt(tokenizer, to_segments([Message("user", text)], TEMPLATES[template]))
        for text in instructions
    ]
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    answers: list[str] = []
    for begin in range(0, len(prompts), BATCH_SIZE):
        chunk = prompts[begin : begin + BATCH_SIZE]
        longest = max(map(len, chunk))
        input_ids = torch.zeros(len(chunk), longest, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(chunk):  # on the right, so that all answers start together
            input_ids[row, longest - len(ids) :] = torch.tensor(ids)
            attention_mask[row, longest - len(ids) :] = 1
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max(1, min(max_new_tokens, positions - longest)),
            do_sample=False,
            # The end token of training, which need not be the one in the base model's settings.
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        answers += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return answers


def load(path: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id. Raises UserError when they do not load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from raysft.train.model import load_from_hub_or_folder

    logging.disable_progress_bar()
    tokenizer = load_from_hub_or_folder(AutoTokenizer, path, "model")
    model = load_from_hub_or_folder(AutoModelForCausalLM, path, "model")
    return model.eval(), tokenizer
