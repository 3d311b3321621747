"""The dimensions of the model a config names, its parameters, and its floating-point operations."""

import json
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysft.config.data import DEMO, DEMO_VOCABULARY
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.estimate.adapters import adapted
from raysft.estimate.families import FAMILIES, GPT2_NAMES, Dims, dims_of_family, gpt2_dims

GPT2_VOCABULARY = 50_257
# n_layer, n_embd, n_head of the models on the hub, where no file says it (Radford et al. 2019).
ON_THE_HUB = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


def dims_of(config: Config) -> Dims:
    """Of the model that a config trains, with its adapter where it has one.

    Raises UserError where the config does not say it, or the model is of none of FAMILIES.
    """
    return adapted(dims_of_model(config), config.adapter)


def dims_of_model(config: Config) -> Dims:
    """From `model.shape`, the config.json of a local folder or of the hub's cache, or the name of a
    GPT-2 on the hub.

    Raises UserError: none of these says it, or the model is of none of FAMILIES.
    """
    model = config.model
    if model.init == "scratch" and model.shape:
        shape = model.shape
        vocabulary = shape.vocab_size or tokens_known(config)
        return gpt2_dims(shape.n_layer, shape.n_embd, shape.n_head, shape.n_positions, vocabulary)
    path = str(model.path)
    name = path.removeprefix("openai-community/")
    local = Path(path).expanduser() / "config.json"
    file = local if local.is_file() or name in ON_THE_HUB else cached(path)
    if file is not None and file.is_file():
        dims = dims_of_json(file)
        return replace(dims, vocabulary=tokens_known(config)) if model.init == "scratch" else dims
    if name not in ON_THE_HUB:
        raise UserError(
            f"model.path: the dimensions of {path!r} are not known here. Name a local folder, or a "
            'model that the hub\'s cache has, or set model.init = "scratch" and model.shape'
        )
    n_layer, n_embd, n_head = ON_THE_HUB[name]
    return gpt2_dims(n_layer, n_embd, n_head, 1024, GPT2_VOCABULARY)


def cached(hub_id: str) -> Path | None:
    """The config.json that a download has left."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):
        found = try_to_load_from_cache(hub_id, "config.json")
        return Path(found) if isinstance(found, str) else None
    return None


def dims_of_json(file: Path) -> Dims:
    """Raises UserError where it is damaged, or of a family that is not known."""
    try:
        raw: Any = json.loads(file.read_text())
        if not isinstance(raw, dict):
            raise ValueError(f"it holds a {type(raw).__name__}, not an object")
        dims = dims_of_family(raw.get("text_config") or raw)  # of a model for images its text part
    except ValueError as error:
        raise UserError(f"model.path: {file} is damaged: {error}") from None
    if dims is None:
        raise UserError(
            f"model.path: {file} is of type {raw.get('model_type')!r}, or a variant, whose "
            f"arithmetic is not known here: it is of {', '.join(f.name for f in FAMILIES.values())}"
        )
    return dims


def dims_of_size(raw: dict[str, Any]) -> Dims | None:
    """A GPT-2 of the layers, width, heads and vocabulary that a Hugging Face config of any family
    names: for a rough figure. None where it does not name them."""
    text = raw.get("text_config") or raw
    names = {*FAMILIES["gpt2"].defaults, *GPT2_NAMES} - {"n_inner"}
    given = {GPT2_NAMES.get(key, key): text[key] for key in names if type(text.get(key)) is int}
    if not {"num_hidden_layers", "hidden_size", "num_attention_heads"} <= given.keys():
        return None
    given["tie_word_embeddings"] = text.get("tie_word_embeddings", True)
    return dims_of_family({"model_type": "gpt2", **given})


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
    """Parameters by part. A layer: attention 2 d (query + key), MLP 2 or 3 times d x inner, and its
    biases and norms. Of GPT-2 that is 4 d² + 4 d, 8 d² + 5 d, and two norms 4 d.

    The weights that transformers makes of each config.
    """
    d, layers = dims.n_embd, dims.n_layer
    embedding = dims.vocabulary * d
    mlp = (3 if dims.gated else 2) * d * dims.inner
    return {
        "token embedding": embedding,
        **({"position embedding": dims.positions} if dims.positions else {}),
        "attention": layers * (2 * d * (dims.query + dims.key_value) + dims.attention_vectors),
        "mlp": layers * (mlp + dims.mlp_vectors),
        "norms": layers * dims.norm_vectors + dims.last,
        **({} if dims.tied else {"LM head": embedding}),
    }


def trained(dims: Dims) -> int:
    """Parameters that the optimizer updates."""
    return dims.adapter.trained if dims.adapter else sum(parameters(dims).values())


def flops(dims: Dims, tokens: float, pairs: float, supervised: float) -> dict[str, float]:
    """Forward and backward FLOPs by part. `pairs`: the sum of the squared lengths of the records.

    linear     6 a weight of the layers' projections and token: 2 forward, 4 backward (Kaplan et al.
               2020, 2.1); of GPT-2 6 x 12 L d²
    attention  12 L q a pair, q the width of all queries: two products over T x T forward, four
               backward (Narayanan et al. 2021, section 3). All T x T pairs count, though a causal
               kernel or a sliding window skips some of them
    head       6 V d a supervised token; it is not computed for others
    adapter    6 a weight of it and token; what it leaves as it is takes no gradient, so that
               linear is 4 a weight, and the head 4 V d

    What is computed twice to save memory does not count twice: these are the model's FLOPs, as in
    MFU (Chowdhery et al. 2022, appendix B). For one token in a record of T, all of it supervised:
    flops(dims, 1, T, 1).
    """
    d = dims.n_embd
    weights = 2 * d * (dims.query + dims.key_value) + (3 if dims.gated else 2) * d * dims.inner
    each = 4.0 if dims.adapter else 6.0
    return {
        "linear": each * dims.n_layer * weights * tokens,
        "attention": 12.0 * dims.n_layer * dims.query * pairs,
        "head": each * dims.vocabulary * d * supervised,
        **({"adapter": 6.0 * dims.adapter.trained * tokens} if dims.adapter else {}),
    }
