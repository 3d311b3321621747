"""Greedy answers from a trained Hugging Face folder."""

from collections.abc import Sequence
from typing import Any

from raysft.data.template import Template, install_template, prompt_segments
from raysft.data.tokenize import encode_prompt
from raysft.data.turns import Message

BATCH_SIZE = 32


def prompt_ids(instruction: str, template: Template) -> list[int]:
    """Token ids [T] of one instruction, as in training."""
    segments = prompt_segments([Message("user", instruction)], template)
    return encode_prompt(template, segments)


def answer(
    model: Any, template: Template, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """One greedy answer for each prompt's token ids, without the end token."""
    import torch

    tokenizer = template.tokenizer
    # The end token of training, which need not be the one in the base model's settings.
    ends = template.stop_ids
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
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            max_new_tokens=max(1, min(max_new_tokens, positions - longest)),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        answers += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return answers


def load(path: str) -> tuple[Any, Template]:
    """Model and template of a folder or hub id, on a GPU where this process sees one. Raises
    UserError when they do not load.

    The template is the one that the tokenizer carries; "plain" where it has none, as a base model.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    from raysft.model.load import load_from_hub_or_folder, load_weights
    from raysft.model.scalar import require_causal
    from raysft.model.text_part import text_part

    logging.disable_progress_bar()
    tokenizer = load_from_hub_or_folder(AutoTokenizer, path, "model")
    template = install_template(tokenizer, "auto")
    hf_config = text_part(load_from_hub_or_folder(AutoConfig, path, "model"), path)
    require_causal(hf_config, path)
    model = load_weights(path, hf_config, {})
    # Greedy means the likeliest token: what a base model penalises or samples by default goes.
    model.generation_config = GenerationConfig()
    if torch.cuda.is_available():
        model = model.to("cuda")
        torch.backends.cuda.enable_cudnn_sdp(False)  # a plan for every length: see train.engine
    return model.eval(), template
