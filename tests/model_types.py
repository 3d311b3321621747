"""What raysft does with every causal type of the installed transformers, built small.

    python -m tests.model_types > docs/models.md

Takes a minute. `tests/unit/test_models_page.py` holds the page to it.
"""

import math
import os
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raysft.config.load import load_config
from raysft.data.batch import pack, pad
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.model.load import load_model
from raysft.runs import events
from raysft.train.loss import supervised_nll
from raysft.train.probe import (
    JUDGED,
    LENGTHS,
    TRAINED,
    WINDOWED,
    alone,
    exact_layout,
    gap_of,
    random_records,
)

VOCABULARY = 61
MOST_PARAMETERS = 5_000_000
# By the names that configs have for them; each type takes those it knows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48,
    "ffn_hidden_size": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2, "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4, "num_heads": 4, "attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8,
    "kv_channels": 8, "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128,
    "sliding_window": 8, "window_size": 8, "attention_chunk_size": 8, "local_attention": 8,
    "sliding_window_size": 8, "num_experts": 2, "num_local_experts": 2,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "rotary_dim": 4,
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
    "mamba_d_ssm": 64, "state_size": 8, "attention_hidden_size": 32, "lru_width": 32,
    "attention_types": [[["global", "local"], 1]], "rope_scaling": None,
    "tie_word_embeddings": False,
}  # fmt: skip


# Where a type needs more than the usual names, or other values for them.
MLA = {"head_dim": 4, "num_key_value_heads": 4, "index_n_heads": 4, "index_head_dim": 8}
OWN: dict[str, dict[str, Any]] = {
    "axk1": MLA, "axk2": MLA, "deepseek_v3": MLA, "deepseek_v32": MLA, "glm_moe_dsa": MLA,
    "youtu": MLA,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 8},
    "gemma4_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY},
    "kimi_linear": {"num_experts_per_token": 1, "linear_head_dim": 8, "linear_num_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 1,
        "head_dim": 4, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "modernbert-decoder": {"pad_token_id": 0},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "mamba"],
        "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layer_types": ["hybrid", "mamba"], "attention_hidden_size": 64,
        "attention_head_dim": 16},
}  # fmt: skip


class Row(NamedTuple):
    model_type: str
    name: str  # of the class
    records: str  # "packed", "padded", "refused" or "not tried"
    why: str = ""
    nats: float = 0.0  # the largest difference of a token's loss
    gradient: float = 0.0  # difference of all parameters' gradients, as a share of their norm


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

    def empty_partition_cache(self) -> None: ...

    def zero_optimization_stage(self) -> int:
        return 0


def small_config(model_type: str) -> PreTrainedConfig:
    """Of two layers and width 32, as far as the type has the usual names for them."""
    config_class = CONFIG_MAPPING[model_type]
    whole = config_class()
    known = whole.to_dict()
    usual = {key: value for key, value in SMALL.items() if key in known}
    kinds = list(dict.fromkeys(getattr(whole, "layer_types", None) or ()))
    if len(kinds) == 2 and set(kinds) <= {"full_attention", *WINDOWED}:
        usual["layer_types"] = kinds
    return config_class(**usual | OWN.get(model_type, {}))


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
    records = random_records(VOCABULARY)
    try:
        hf_config = small_config(model_type)
        require_small(hf_config)
        config, model = built(hf_config)
        engine = Engine(model)
        for index in range(len(records)):
            alone(engine, records, index)
    except Exception as error:  # a type that needs settings of its own
        return Row(model_type, name, "not tried", words(error))
    told: list[events.Event] = []
    try:
        layout = exact_layout(config, engine, VOCABULARY, max(LENGTHS), told.append)
    except UserError as error:
        return Row(model_type, name, "refused", reason(str(error)))
    packing = layout.batch.packing
    why = reason(told[0].message) if told and isinstance(told[0], events.Warning) else ""
    gap = gap_of(engine, records, packing=packing)
    gradient = gradient_gap(engine, records, packing=packing)
    return Row(model_type, name, "packed" if packing else "padded", why, gap.nats, gradient)


def reason(message: str) -> str:
    """Without the numbers, which are others on every machine."""
    if "tokens that it must not see" in message:
        return "records would see each other" if "padded" in message else "it is not causal"
    if "does not apply its" in message:
        return "its window is in its mask alone"
    if "takes no packs" in message:
        return "attention of its own"
    if "forward pass ends in" in message:
        return "its forward pass needs a mask"
    return "other losses than alone"


def words(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def gradient_gap(engine: Engine, records: TokenDataset, *, packing: bool) -> float:
    """Of all parameters, to transformers' own forward of the record alone."""
    model = engine.module
    engine.eval()
    batch = (pack if packing else pad)(records, np.arange(len(records)))
    found = gradients(model, supervised_nll(engine, batch))
    wanted = gradients(model, alone(engine, records, JUDGED)[: TRAINED - 1].sum())
    return float((found - wanted).norm() / wanted.norm())


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in found])


def page(rows: list[Row]) -> str:
    """docs/models.md. Numbers as bounds, because the last digits are others on every machine."""
    tried = [one for one in rows if one.records in ("packed", "padded")]
    nats, gradient = (max(values) for values in zip(*(one[4:] for one in tried), strict=True))
    lines = [
        INTRODUCTION.format(
            version=transformers.__version__,
            types=len(rows),
            nats=bound(nats),
            gradient=bound(gradient),
            packed=sum(one.records == "packed" for one in rows),
            padded=sum(one.records == "padded" for one in rows),
            refused=sum(one.records == "refused" for one in rows),
        ),
        "| type | class | records | why |",
        "|---|---|---|---|",
    ]
    shown = [one for one in rows if one.records != "not tried"]
    lines += [f"| `{one.model_type}` | {one.name} | {one.records} | {one.why} |" for one in shown]
    others = ", ".join(f"`{one.model_type}`" for one in rows if one.records == "not tried")
    return "\n".join([*lines, "", OTHERS.format(others=others)])


def bound(value: float) -> str:
    """The next power of ten above it, not below 1e-5."""
    return f"1e{max(-5, math.ceil(math.log10(value))):d}" if value else "1e-5"


INTRODUCTION = """\
# Models

*Made by `python -m tests.model_types > docs/models.md`, and held to it by a test.*

raysft trains any causal language model of transformers whose records it computes as transformers
computes each of them alone. Before the first step every run tries that on its own model, engine and
precision, with three short records in one batch: the loss of every token, the gradient of a record,
and that nothing of it reaches later tokens or other records. Where packed records fail, they are
padded instead, and the run says so; where padded ones fail too, the run ends before it trains.
The whole try costs six passes over some fifty tokens.

What that came to for the {types} causal types of transformers {version}, each built small (two
layers, width 32, windows of 8 tokens, random weights, fp32): {packed} packed, {padded} padded,
{refused} refused. Over all that train, a token's loss differs by less than {nats} nats from that of
its record alone, and the gradient of all parameters by less than {gradient} of its norm.

Mixture-of-experts models are trained on the loss of tokens alone. Where a model's config asks for
a router loss beside it (`output_router_logits = true`), the run says that it is not added.
"""

OTHERS = """\
Not tried here, because the usual sizes do not make a small one of them or transformers' own forward
does not run on token ids alone; a run on one of them makes the same try before its first step:
{others}.
"""


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed writes that it has chosen it
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # matrices as small as these gain nothing by a second
    print(page([row(model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]), end="")


if __name__ == "__main__":
    main()
