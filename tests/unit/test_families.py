"""The arithmetic of each family of models, against the models that transformers builds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.estimate.families import FAMILIES, dims_of_family
from raysft.estimate.memory import kept, layout_of
from raysft.estimate.shape import dims_of, flops, parameters
from raysft.model.load import DTYPES, load_model

SMALL = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 24}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"head_dim": 32}),
    ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32}),
    ("gemma3_text", {"head_dim": 32}),
    ("phi", {"num_key_value_heads": None}),
    ("phi3", {"pad_token_id": None}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}),
    ("stablelm", {}),
    ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True}),
    ("gpt2", {"n_inner": 96}),
]


def built(config: Any, device: str) -> Any:
    """On "meta" without its numbers."""
    config._attn_implementation = "eager"
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize(("kind", "other"), VARIANTS)
def test_parameters_and_flops_are_those_of_transformers_and_torch(
    kind: str, other: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(kind, **SMALL | other)
    dims = dims_of_family(config.to_dict())
    assert dims is not None
    model = built(config, "cpu")
    assert sum(parameters(dims).values()) == sum(p.numel() for p in model.parameters())
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False).logits.sum().backward()
    ours = sum(flops(dims, 64, 64 * 64, 64).values())
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_that_says_nothing_is_as_transformers_has_it(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    dims = dims_of_family({"model_type": kind})
    assert dims is not None
    assert dims == dims_of_family(config.to_dict())
    one = replace(dims, n_layer=1)  # enough to be held to a model of gigabytes
    config.num_hidden_layers = 1
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:1]
    count = sum(parameter.numel() for parameter in built(config, "meta").parameters())
    assert sum(parameters(one).values()) == count


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("opt", {"word_embed_proj_dim": 32}),
        ("opt", {"do_layer_norm_before": False}),
        ("phi", {"qk_layernorm": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("gpt2", {"add_cross_attention": True}),
        ("mixtral", {}),
        ("mamba", {}),
    ],
)
def test_another_arithmetic_is_not_guessed(kind: str, other: dict[str, Any]) -> None:
    assert dims_of_family({"model_type": kind} | other) is None


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("kind", "other"), [v for v in VARIANTS if v[0] != "stablelm"])
def test_what_a_layer_keeps_for_the_backward_pass(
    kind: str, other: dict[str, Any], precision: str
) -> None:
    """By the storages that autograd keeps, of one layer more. Those of attention itself, which
    keeps queries, keys, values and output in its own way, are not among them."""
    tokens, dtype = 64, DTYPES[precision]
    counted = []
    for layers in (1, 2):
        config = AutoConfig.for_model(kind, **SMALL | other | {"num_hidden_layers": layers})
        settings = [f"engine.precision={precision}", "engine.zero_stage=1"]
        model = load_model(load_config("gpt2-tiny-cpu", settings), config, {}, 199).to(dtype)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept_bytes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, own: Any = own, found: Any = kept_bytes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            base = getattr(model.train(), model.base_model_prefix)
            alive = base(torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
        counted.append(sum(kept_bytes.values()))
        del alive
    dims = dims_of_family(config.to_dict())
    assert dims is not None
    layout = layout_of(load_config("gpt2-tiny-cpu", settings))
    attention = 2 * (dims.query + dims.key_value)
    scores = 3 * dims.n_head * layout.record_tokens if dims.soft_capped else 0
    expected = kept(layout, dims) - attention - scores
    found = (counted[1] - counted[0]) / tokens / layout.weight_bytes
    assert found == pytest.approx(expected, rel=0.03)


def test_a_config_in_the_cache_of_the_hub_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--acme--small"
    snapshot = repo / "snapshots/abc"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("abc")
    AutoConfig.for_model("qwen3", **SMALL).save_pretrained(snapshot)
    dims = dims_of(load_config("gpt2", ["model.path=acme/small"]))
    assert (dims.n_layer, dims.query, dims.key_value) == (3, 4 * 128, 2 * 128)
    for unknown in ("acme/other", "not/a/name", "../up"):
        with pytest.raises(UserError, match="are not known here"):
            dims_of(load_config("gpt2", [f"model.path={unknown}"]))


def test_of_a_model_for_images_the_text_counts(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gemma3", text_config=SMALL | {"head_dim": 32})
    config.save_pretrained(tmp_path)
    dims = dims_of(load_config("gpt2", [f"model.path={tmp_path}"]))
    assert dims == dims_of_family(config.text_config.to_dict())
