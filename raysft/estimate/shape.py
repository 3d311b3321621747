"""The dimensions of the model a config names, its parameters, and its floating-point operations."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from raysft.config.data import DEMO, DEMO_VOCABULARY
from raysft.config.schema import Config
from raysft.errors import UserError

GPT2_VOCABULARY = 50_257
# n_layer, n_embd, n_head of the models on the hub, where no file says it (Radford et al. 2019).
ON_THE_HUB = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


@dataclass(frozen=True)
class Dims:
    """A GPT-2, whose LM head shares the weight of the token embedding where it is tied."""

    n_layer: int
    n_embd: int
    n_head: int
    n_positions: int
    vocabulary: int
    tied: bool = True


def dims_of(config: Config) -> Dims:
    """From `model.shape`, a local folder's config.json, or the name of a GPT-2 on the hub.

    Raises UserError: none of these says it, or the model is no GPT-2.
    """
    model = config.model
    if model.init == "scratch" and model.shape:
        shape = model.shape
        vocabulary = shape.vocab_size or tokens_known(config)
        return Dims(shape.n_layer, shape.n_embd, shape.n_head, shape.n_positions, vocabulary)
    path = str(model.path)
    file = Path(path).expanduser() / "config.json"
    if file.is_file():
        dims = dims_of_json(file)
        return replace(dims, vocabulary=tokens_known(config)) if model.init == "scratch" else dims
    name = path.removeprefix("openai-community/")
    if name not in ON_THE_HUB:
        raise UserError(
            f"model.path: the dimensions of {path!r} are not known here. Name a local folder, "
            'or set model.init = "scratch" and model.shape'
        )
    n_layer, n_embd, n_head = ON_THE_HUB[name]
    return Dims(n_layer, n_embd, n_head, 1024, GPT2_VOCABULARY)


def dims_of_json(file: Path) -> Dims:
    """Raises UserError where it is damaged, or of a model that is no GPT-2."""
    try:
        raw: Any = json.loads(file.read_text())
        if not isinstance(raw, dict):
            raise ValueError(f"it holds a {type(raw).__name__}, not an object")
        dims = dims_of_family(raw)
    except ValueError as error:
        raise UserError(f"model.path: {file} is damaged: {error}") from None
    if dims is None:
        raise UserError(
            f"model.path: {file} is of type {raw.get('model_type')!r}; the arithmetic here is of "
            "GPT-2 with an MLP of 4 x n_embd"
        )
    return dims


# What transformers takes for a key that a config.json of GPT-2 lacks, and its other names for them.
GPT2_DEFAULTS = {
    "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": GPT2_VOCABULARY,
}  # fmt: skip
GPT2_ALIASES = {
    "num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}  # fmt: skip


def gpt2(raw: dict[str, Any]) -> Dims | None:
    """None where its MLP is not 4 times as wide as the model, or attends to another model.

    Raises ValueError where a size is no whole number.
    """
    named = {GPT2_ALIASES.get(key, key): value for key, value in raw.items()}
    sizes = {key: named.get(key, default) for key, default in GPT2_DEFAULTS.items()}
    for key, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} is {value!r}, not a whole number above 0")
    if named.get("n_inner") not in (None, 4 * sizes["n_embd"]) or named.get("add_cross_attention"):
        return None
    n_layer, n_embd, n_head, n_positions, vocabulary = sizes.values()
    tied = named.get("tie_word_embeddings", True) is not False
    return Dims(n_layer, n_embd, n_head, n_positions, vocabulary, tied)


class Family(NamedTuple):
    name: str
    dims: Callable[[dict[str, Any]], Dims | None]  # of a Hugging Face config as a dict


FAMILIES = {"gpt2": Family("GPT-2", gpt2)}  # by the model_type of their configs


def dims_of_family(raw: dict[str, Any]) -> Dims | None:
    """Of a Hugging Face config as a dict; None where this arithmetic does not hold for it."""
    family = FAMILIES.get(raw.get("model_type", ""))
    return family.dims(raw) if family else None


def dims_of_size(raw: dict[str, Any]) -> Dims | None:
    """A GPT-2 of the layers, width, heads and vocabulary that a Hugging Face config of any family
    names: for a rough figure. None where it does not name them."""
    text = raw.get("text_config") or raw
    names = {*GPT2_DEFAULTS, *GPT2_ALIASES}
    sizes = {GPT2_ALIASES.get(key, key): text[key] for key in names if type(text.get(key)) is int}
    if not {"n_layer", "n_embd", "n_head"} <= sizes.keys():
        return None
    return gpt2(sizes | {"tie_word_embeddings": text.get("tie_word_embeddings", True)})


def tokens_known(config: Config) -> int:
    """The tokenizer's vocabulary with its added tokens, read from its file."""
    path = config.model.tokenizer_path
    if path == DEMO:
        return DEMO_VOCABULARY
    file = Path(path).expanduser() / "tokenizer.json"
    if not file.is_file():
        return GPT2_VOCABULARY
    return tokens_in(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def tokens_in(file: Path, changed: int) -> int:  # noqa: ARG001 (part of what is remembered)
    """Of a tokenizer.json, which was changed at that time. Raises ValueError, KeyError and
    TypeError for a file of another kind."""
    raw = json.loads(file.read_text())
    vocabulary = raw["model"]["vocab"]  # {token: id}, or a list of [token, score]
    known = {*vocabulary} if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}
    return len(known | {token["content"] for token in raw.get("added_tokens", ())})


def parameters(dims: Dims) -> dict[str, int]:
    """Parameters by part. A block: attention 4 d² + 4 d, MLP 8 d² + 5 d, two norms 4 d.

    Radford et al. 2019, and the weights that transformers makes of its GPT2Config.
    """
    d = dims.n_embd
    head = {} if dims.tied else {"LM head": dims.vocabulary * d}
    return {
        "token embedding": dims.vocabulary * d,
        "position embedding": dims.n_positions * d,
        "attention": dims.n_layer * (4 * d * d + 4 * d),
        "mlp": dims.n_layer * (8 * d * d + 5 * d),
        "norms": dims.n_layer * 4 * d + 2 * d,
        **head,
    }


def flops(dims: Dims, tokens: float, pairs: float, supervised: float) -> dict[str, float]:
    """Forward and backward FLOPs by part. `pairs`: the sum of the squared lengths of the records.

    linear     6 x 12 L d² a token: 2 a weight forward, 4 backward (Kaplan et al. 2020, 2.1)
    attention  12 L d a pair: two products over T x T forward, four backward (Narayanan et al. 2021,
               section 3). All T x T pairs count, though a causal kernel skips half of them
    head       6 V d a supervised token; it is not computed for others

    What is computed twice to save memory does not count twice: these are the model's FLOPs, as in
    MFU (Chowdhery et al. 2022, appendix B). For one token in a record of T, all of it supervised:
    flops(dims, 1, T, 1).
    """
    d = dims.n_embd
    return {
        "linear": 6.0 * 12 * dims.n_layer * d * d * tokens,
        "attention": 12.0 * dims.n_layer * d * pairs,
        "head": 6.0 * dims.vocabulary * d * supervised,
    }
