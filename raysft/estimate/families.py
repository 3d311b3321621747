"""The families of models whose arithmetic is known: from a Hugging Face config to dimensions.

A config.json may leave out what is as transformers has it by default, so the defaults stand here
too. Tests hold every count to the models that transformers builds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


class Adapted(NamedTuple):
    """A low-rank adapter, beside which nothing is trained. A token's are numbers of a layer."""

    trained: int  # parameters
    largest: int  # of one of its matrices
    kept: int  # for the backward pass, of a token
    dropped: int  # inputs of a token's that dropout goes over, those of each layer by itself
    replaced: int  # inputs of a token's that are kept no longer, because what is left of them is


@dataclass(frozen=True)
class Dims:
    """A decoder. Vectors are a layer's biases and norms, in parameters."""

    n_layer: int
    n_embd: int  # d, the width
    n_head: int
    n_positions: int  # tokens of the longest record
    vocabulary: int
    query: int  # heads x their size
    key_value: int  # heads of keys x their size; values are as wide
    inner: int  # the width inside the MLP
    gated: bool  # the MLP multiplies by a second projection
    tied: bool  # the LM head shares the weight of the token embedding
    norms: int  # over the width, a layer
    attention_vectors: int
    mlp_vectors: int
    norm_vectors: int
    last: int  # parameters of the norm after the layers, and of the head's bias
    positions: int = 0  # parameters of learned positions
    # What decides how much is kept for the backward pass.
    rms_norm: bool = False  # in fp32
    weighs_in_fp32: bool = False  # and so is the product with its weight
    qk_norms: bool = False  # queries and keys have norms of their own
    parallel: bool = False  # attention and MLP read the same
    relu: bool = False
    soft_capped: bool = False  # attention keeps its scores
    family: str = ""  # its key in FAMILIES
    adapter: Adapted | None = None


class Keys(NamedTuple):
    """What all families name."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int  # the size of one
    inner: int
    vocabulary: int
    positions: int
    config: Mapping[str, Any]  # and all else

    def has(self, key: str) -> bool:
        return bool(self.config.get(key))

    def without_groups(self) -> "Keys":
        """For families that know no heads of keys and no size of a head: what names them is not
        read."""
        return self._replace(kv_heads=self.heads, head=self.width // self.heads)


@dataclass(frozen=True)
class Family:
    """defaults: what transformers takes for a key that a config.json lacks, and its other names."""

    name: str
    dims: Callable[[Keys], Dims | None]  # None for a variant whose arithmetic is another
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)


def keys_of(raw: Mapping[str, Any], family: Family) -> Keys:
    """Raises ValueError where a size is no whole number."""
    given = {key: value for key, value in raw.items() if value is not None}
    spelled = {family.aliases.get(key, key): key for key in given}
    known = {**family.defaults, **{name: given[key] for name, key in spelled.items()}}

    def whole(name: str, otherwise: int | None = None) -> int:
        value = known.get(name, otherwise)
        if type(value) is not int or value < 1:
            key = spelled.get(name, name)
            raise ValueError(f"{key} is {value!r}, not a whole number above 0")
        return value

    layers, width, heads = map(whole, ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    kv_heads, head = whole("num_key_value_heads", heads), whole("head_dim", max(1, width // heads))
    inner, vocabulary = whole("intermediate_size", 4 * width), whole("vocab_size")
    positions = whole("max_position_embeddings")
    return Keys(layers, width, heads, kv_heads, head, inner, vocabulary, positions, known)


def decoder(keys: Keys, **facts: Any) -> Dims:
    return Dims(
        n_layer=keys.layers, n_embd=keys.width, n_head=keys.heads, n_positions=keys.positions,
        vocabulary=keys.vocabulary, query=keys.heads * keys.head,
        key_value=keys.kv_heads * keys.head, inner=keys.inner,
        tied=keys.config["tie_word_embeddings"] is not False, **facts,
    )  # fmt: skip


def rms_decoder(
    keys: Keys, *, norms: int = 2, qk_norms: bool = False, qkv_bias: bool = False, **facts: bool
) -> Dims:
    """Llama's kind: RMSNorm, a gated MLP, and no biases but those that its config asks for."""
    d, query, key_value = keys.width, keys.heads * keys.head, keys.kv_heads * keys.head
    attention = query + 2 * key_value if qkv_bias or keys.has("attention_bias") else 0
    attention += d if keys.has("attention_bias") else 0
    attention += 2 * keys.head if qk_norms else 0
    return decoder(
        keys, gated=True, norms=norms, rms_norm=True, qk_norms=qk_norms,
        attention_vectors=attention, mlp_vectors=2 * keys.inner + d if keys.has("mlp_bias") else 0,
        norm_vectors=norms * d, last=d, **facts,
    )  # fmt: skip


def gemma(keys: Keys, *, norms: int = 2, qk_norms: bool = False) -> Dims:
    capped = keys.has("attn_logit_softcapping")
    return rms_decoder(
        keys, norms=norms, qk_norms=qk_norms, weighs_in_fp32=True, soft_capped=capped
    )


def layer_norm_decoder(keys: Keys, *, norms: int = 2, **facts: Any) -> Dims:
    """GPT-2's kind: LayerNorm with a bias, and biases in its projections. What differs is given."""
    d = keys.width
    usual = {
        "gated": False, "norms": norms,
        "attention_vectors": (keys.heads + 2 * keys.kv_heads) * keys.head + d,
        "mlp_vectors": keys.inner + d, "norm_vectors": norms * 2 * d, "last": 2 * d,
    }  # fmt: skip
    return decoder(keys, **usual | facts)


def gpt2(keys: Keys) -> Dims | None:
    if keys.has("add_cross_attention"):
        return None
    return layer_norm_decoder(keys.without_groups(), positions=keys.positions * keys.width)


def phi(keys: Keys) -> Dims | None:
    """Attention and MLP side by side, after one norm; the head has a bias."""
    if keys.has("qk_layernorm"):
        return None
    return layer_norm_decoder(keys, norms=1, last=2 * keys.width + keys.vocabulary)


def gpt_neox(keys: Keys) -> Dims:
    biases = {} if keys.has("attention_bias") else {"attention_vectors": 0}
    parallel = keys.has("use_parallel_residual")
    return layer_norm_decoder(keys.without_groups(), parallel=parallel, **biases)


def opt(keys: Keys) -> Dims | None:
    """Two positions more than it takes tokens. The smallest of them are laid out otherwise."""
    narrow = keys.config.get("word_embed_proj_dim", keys.width) != keys.width
    usual = ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine")
    removed = keys.has("_remove_final_layer_norm")
    if narrow or removed or not all(keys.config.get(key, True) for key in usual):
        return None
    positions = (keys.positions + 2) * keys.width
    relu = keys.config.get("activation_function", "relu") == "relu"
    return layer_norm_decoder(keys.without_groups(), positions=positions, relu=relu)


def stablelm(keys: Keys) -> Dims | None:
    if keys.has("qk_layernorm"):
        return None
    biases = (keys.heads + 2 * keys.kv_heads) * keys.head if keys.has("use_qkv_bias") else 0
    norms = 1 if keys.has("use_parallel_residual") else 2
    return layer_norm_decoder(
        keys, norms=norms, gated=True, attention_vectors=biases, mlp_vectors=0
    )


def sizes(
    layers: int, width: int, heads: int, inner: int | None, vocabulary: int, positions: int,
    *, tied: bool = False, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    """Defaults under their names. inner: None is 4 times the width."""
    found = {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "vocab_size": vocabulary, "max_position_embeddings": positions,
        "tie_word_embeddings": tied, **others,
    }  # fmt: skip
    return found | ({"intermediate_size": inner} if inner else {})


GPT2_NAMES = {
    "n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size",
}  # fmt: skip
GEMMA: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 256}
NEOX: dict[str, Any] = {"attention_bias": True, "use_parallel_residual": True}
FAMILIES = {  # by the model_type of their configs
    "gpt2": Family("GPT-2", gpt2, sizes(12, 768, 12, None, 50_257, 1024, tied=True), GPT2_NAMES),
    "llama": Family("Llama", rms_decoder, sizes(32, 4096, 32, 11_008, 32_000, 2048)),
    "mistral": Family(
        "Mistral", rms_decoder, sizes(32, 4096, 32, 14_336, 32_000, 131_072, num_key_value_heads=8)
    ),
    "qwen2": Family(
        "Qwen2",
        lambda keys: rms_decoder(keys, qkv_bias=True),
        sizes(32, 4096, 32, 22_016, 151_936, 32_768),
    ),
    "qwen3": Family(
        "Qwen3",
        lambda keys: rms_decoder(keys, qk_norms=True),
        sizes(32, 4096, 32, 22_016, 151_936, 32_768, head_dim=128),
    ),
    "gemma": Family(
        "Gemma",
        gemma,
        sizes(28, 3072, 16, 24_576, 256_000, 8192, tied=True, head_dim=256),
    ),
    "gemma2": Family(
        "Gemma 2",
        lambda keys: gemma(keys, norms=4),
        sizes(26, 2304, 8, 9216, 256_000, 8192, tied=True, **GEMMA, attn_logit_softcapping=50.0),
    ),
    "gemma3_text": Family(
        "Gemma 3",
        lambda keys: gemma(keys, norms=4, qk_norms=True),
        sizes(26, 2304, 8, 9216, 262_208, 131_072, tied=True, **GEMMA),
    ),
    "phi": Family("Phi", phi, sizes(24, 2048, 32, 8192, 51_200, 2048)),
    "phi3": Family("Phi-3", rms_decoder, sizes(32, 3072, 32, 8192, 32_064, 4096)),
    "gpt_neox": Family("GPT-NeoX", gpt_neox, sizes(44, 6144, 64, 24_576, 50_432, 2048, **NEOX)),
    "opt": Family(
        "OPT",
        opt,
        sizes(12, 768, 12, 3072, 50_272, 2048, tied=True),
        {"ffn_dim": "intermediate_size"},
    ),
    "stablelm": Family("StableLM", stablelm, sizes(32, 2560, 32, 6912, 50_304, 4096)),
}


def dims_of_family(raw: Mapping[str, Any]) -> Dims | None:
    """Of a Hugging Face config as a dict; None where this arithmetic does not hold for it.

    Raises ValueError where a size is no whole number.
    """
    name = raw.get("model_type", "")
    family = FAMILIES.get(name)
    dims = family.dims(keys_of(raw, family)) if family else None
    return replace(dims, family=name) if dims else None


def gpt2_dims(
    n_layer: int, n_embd: int, n_head: int, n_positions: int, vocabulary: int, *, tied: bool = True
) -> Dims:
    """Of a GPT-2 whose MLP is 4 times as wide as the model."""
    raw = {
        "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "n_positions": n_positions,
        "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip
    dims = dims_of_family({"model_type": "gpt2", **raw})
    assert dims is not None
    return dims
