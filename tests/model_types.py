"""What raysft does with every causal type of the installed transformers, built small.

    python -m tests.model_types > docs/models.md

Takes some minutes. `tests/unit/test_models.py` holds the page against a part of it.
"""

import sys
from typing import Any, NamedTuple

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.model.load import load_model
from raysft.runs.events import Event
from raysft.train.probe import exact_layout, largest_gap

VOCABULARY = 61
MOST_PARAMETERS = 2_000_000
# By the names that configs have for them; each type takes those it knows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48,
    "ffn_hidden_size": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8,
    "kv_channels": 8, "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128,
    "sliding_window": 8, "window_size": 8, "num_experts": 2, "num_local_experts": 2,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "rotary_dim": 4,
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
    "mamba_d_ssm": 64, "state_size": 8, "attention_hidden_size": 32, "lru_width": 32,
    "attention_types": [[["global", "local"], 1]], "rope_scaling": None,
    "tie_word_embeddings": False,
}  # fmt: skip


class Row(NamedTuple):
    model_type: str
    name: str  # of the class
    does: str  # "packed", "padded", "refused", or "not built here"
    gap: float | None  # the largest difference of a token's loss, in nats
    why: str


class Engine:
    """A whole model where the probe expects an engine."""

    device = torch.device("cpu")

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()

    def empty_partition_cache(self) -> None:
        pass


def small_config(model_type: str) -> PreTrainedConfig:
    """Of two layers and width 32, as far as the type has the usual names for them."""
    config_class = CONFIG_MAPPING[model_type]
    known = config_class().to_dict()
    return config_class(**{key: value for key, value in SMALL.items() if key in known})


def nested(model_type: str, vocab_size: int = VOCABULARY) -> Any:
    """The config of a model for text and images, both parts small."""

    sizes = SMALL | {"vocab_size": vocab_size}

    def small(table: dict[str, Any]) -> dict[str, Any]:
        named = {key: value for key, value in table.items() if value is not None}
        kept = {key: sizes[key] for key in named if key in sizes}
        inner = {key: small(value) for key, value in named.items() if key.endswith("_config")}
        vision = {"image_size": 28, "patch_size": 14} if "vision" in table["model_type"] else {}
        return {"model_type": table["model_type"], **kept, **inner, **vision}

    config_class = CONFIG_MAPPING[model_type]
    return config_class(**small(config_class().to_dict()))


def require_small(hf_config: PreTrainedConfig) -> None:
    """Raises ValueError for a type whose sizes have names of their own: it would be built whole."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"it has {count:,} parameters")


def built(hf_config: PreTrainedConfig) -> Any:
    """The model as a worker makes it, with weights that are large enough to matter."""
    settings = ["engine.zero_stage=1", "engine.precision=fp32", "batch.seq_len=64"]
    config = load_config("gpt2-tiny-cpu", [*settings, "batch.tokens_per_micro_batch=128"])
    torch.manual_seed(0)
    model = load_model(config, hf_config, {}, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    return config, model


def row(model_type: str) -> Row:
    name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    try:
        hf_config = small_config(model_type)
        require_small(hf_config)
        config, model = built(hf_config)
    except Exception as error:  # a type that needs settings of its own
        return Row(model_type, name, "not built here", None, words(error))
    engine, told = Engine(model), list[Event]()
    try:
        layout = exact_layout(config, engine, VOCABULARY, told.append)
        packing = layout.batch.packing
        gap = largest_gap(engine, VOCABULARY, packing=packing)
        return Row(model_type, name, "packed" if packing else "padded", gap, "")
    except UserError as error:
        return Row(model_type, name, "refused", None, words(error))
    except Exception as error:
        return Row(model_type, name, "refused", None, words(error))


def words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:90] if text else ''}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        print(row(model_type), flush=True, file=sys.stderr)


if __name__ == "__main__":
    main()
