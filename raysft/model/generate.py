"""Answers from a trained Hugging Face folder, by transformers' own `generate`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raysft.data.template import Template, install_template, prompt_segments
from raysft.data.tokenize import encode_prompt
from raysft.data.turns import Conversation, Message, RecordError
from raysft.errors import UserError

BATCH_SIZE = 32
WINDOW = 32  # batches whose prompts are sorted by length together


@dataclass(frozen=True)
class How:
    """What was asked for. What it leaves open, the model's generation_config.json says."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float | None = None
    stop: tuple[str, ...] = ()


class Answer(NamedTuple):
    text: str
    finish: str  # "stop": by an end token or a text to stop at; "length": cut


class Generated(NamedTuple):
    rows: list[list[int]]  # the tokens after each prompt; padding may follow the end token
    cache: Any  # keys and values of all tokens but the last, where the model has such


def prompt_ids(asked: str | Conversation, template: Template) -> list[int]:
    """Token ids [T] of one instruction, or of a conversation that waits for its answer, as in
    training. Raises RecordError where the template refuses it."""
    conversation = [Message("user", asked)] if isinstance(asked, str) else asked
    return encode_prompt(template, prompt_segments(conversation, template))


def positions_of(model: Any) -> int:
    return getattr(model.config, "max_position_embeddings", None) or 10**9


def answer(
    model: Any, template: Template, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """One greedy answer for each prompt's token ids, without the end token."""
    tokenizer = template.tokenizer
    # The end token of training, which need not be the one in the base model's settings.
    ends = template.stop_ids
    answers: list[str] = []
    for begin in range(0, len(prompts), BATCH_SIZE):
        chunk = prompts[begin : begin + BATCH_SIZE]
        inputs = padded(model, chunk)
        longest = inputs["input_ids"].shape[1]
        output = model.generate(
            **inputs,
            max_new_tokens=max(1, min(max_new_tokens, positions_of(model) - longest)),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        answers += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return answers


def padded(model: Any, rows: Sequence[list[int]]) -> dict[str, Any]:
    """input_ids and attention_mask, int64 [B, T]: on the right, so that all answers start together.

    transformers counts the positions of a row from its first token.
    """
    import torch

    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        attention_mask[row, longest - len(ids) :] = 1
    return {
        "input_ids": input_ids.to(model.device),
        "attention_mask": attention_mask.to(model.device),
    }


def end_tokens(model: Any, template: Template) -> list[int]:
    """Those of the template, and what the model's own settings name beside them."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    return list(dict.fromkeys([*template.stop_ids, *(int(n) for n in named if n is not None)]))


def settings(model: Any, how: How, ends: Sequence[int]) -> dict[str, Any]:
    """For `generate`, over the model's own settings."""
    given: dict[str, Any] = {
        "do_sample": how.temperature > 0, "num_beams": 1, "num_return_sequences": 1,
        "eos_token_id": list(ends), "pad_token_id": ends[0],
    }  # fmt: skip
    if how.temperature > 0:
        given["temperature"] = how.temperature
        if how.top_p is not None:
            given["top_p"] = how.top_p
        if model.generation_config.top_k is None:
            given["top_k"] = 0  # or transformers would sample among 50 tokens
    return given


def generate_ids(
    model: Any,
    template: Template,
    rows: Sequence[list[int]],
    how: How,
    *,
    write: Callable[[str], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    cache: Any = None,
) -> Generated:
    """write: gets a single answer in pieces. stopped: ends it when true. cache: of the first tokens
    of a single prompt."""
    import torch

    from raysft.model.streaming import Pieces, StopAtTexts, StopWhen

    inputs = padded(model, rows)
    longest = inputs["input_ids"].shape[1]
    ends = end_tokens(model, template)
    tokenizer = template.tokenizer
    criteria: list[Any] = [StopAtTexts(tokenizer, how.stop, longest)] if how.stop else []
    criteria += [StopWhen(stopped)] if stopped else []
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=min(how.max_new_tokens, positions_of(model) - longest),
            stopping_criteria=criteria,
            streamer=Pieces(tokenizer, ends, how.stop, write) if write else None,
            past_key_values=cache,
            return_dict_in_generate=True,
            **settings(model, how, ends),
        )
    rows_made = output.sequences[:, longest:].tolist()
    return Generated(rows_made, getattr(output, "past_key_values", None))


def as_answer(model: Any, template: Template, ids: Sequence[int], how: How) -> Answer:
    from raysft.model.streaming import words_of

    ends, tokenizer = end_tokens(model, template), template.tokenizer
    text = words_of(tokenizer, ids, ends, how.stop)
    ended = any(token in ends for token in ids) or any(
        stop in tokenizer.decode(ids, skip_special_tokens=True) for stop in how.stop
    )
    return Answer(text, "stop" if ended else "length")


def encoded(template: Template, asked: Conversation, place: str, positions: int) -> list[int]:
    """Token ids [T]. Raises UserError where the template refuses, or there is no room to answer."""
    try:
        ids = prompt_ids(asked, template)
    except RecordError as error:
        raise UserError(f"{place}: {error}") from None
    if len(ids) >= positions:
        raise UserError(
            f"{place} has {len(ids):,} tokens, and the model takes {positions:,} with its answer: "
            "shorten it"
        )
    return ids


def generate_all(
    model: Any, template: Template, prompts: Sequence[list[int]], how: How, batch_size: int
) -> Iterator[Answer]:
    """The answer to each, in order, as if each were alone.

    In batches of prompts about as long, whose answers may become equally long: in one with a longer
    prompt, the model's last position would cut an answer earlier.
    """
    for begin in range(0, len(prompts), WINDOW * batch_size):
        window = prompts[begin : begin + WINDOW * batch_size]
        found: dict[int, Answer] = {}
        for batch in batches(window, how.max_new_tokens, positions_of(model), batch_size):
            made = generate_ids(model, template, [window[index] for index in batch], how)
            for index, ids in zip(batch, made.rows, strict=True):
                found[index] = as_answer(model, template, ids, how)
        yield from (found[index] for index in range(len(window)))


def batches(
    prompts: Sequence[list[int]], max_new_tokens: int, positions: int, batch_size: int
) -> Iterator[list[int]]:
    """Indices of prompts, by length; those of a batch have the same room for an answer."""

    def room(index: int) -> int:
        return min(max_new_tokens, positions - len(prompts[index]))

    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        if batch and (len(batch) == batch_size or room(index) != room(batch[0])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def load(path: str) -> tuple[Any, Template]:
    """As `load_as_saved`, for greedy answers: the likeliest token, whatever a base model penalises
    or samples by default."""
    from transformers import GenerationConfig

    model, template = load_as_saved(path)
    model.generation_config = GenerationConfig()
    return model, template


def load_as_saved(path: str) -> tuple[Any, Template]:
    """Model and template of a folder, also of an adapter's, or of a hub id, on a GPU where this
    process sees one. Raises UserError when they do not load.

    The template is the one that the tokenizer carries; "plain" where it has none, as a base model.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    from raysft.model.adapter_files import load_adapted
    from raysft.model.files import is_adapter
    from raysft.model.load import load_from_hub_or_folder, load_weights
    from raysft.model.scalar import require_causal
    from raysft.model.text_part import text_part

    logging.disable_progress_bar()
    tokenizer = load_from_hub_or_folder(AutoTokenizer, path, "model")
    template = install_template(tokenizer, "auto")
    if is_adapter(Path(path)):
        model = load_adapted(Path(path))
    else:
        hf_config = text_part(load_from_hub_or_folder(AutoConfig, path, "model"), path)
        require_causal(hf_config, path)
        model = load_weights(path, hf_config, {})
    if torch.cuda.is_available():
        model = model.to("cuda")
        torch.backends.cuda.enable_cudnn_sdp(False)  # a plan for every length: see train.engine
    return model.eval(), template
