"""Adapters: their arithmetic against peft's and torch's counts, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.config.adapter import Adapter
from raysft.config.load import load_config
from raysft.errors import UserError
from raysft.estimate.adapters import adapted, linears
from raysft.estimate.families import dims_of_family, gpt2_dims
from raysft.estimate.memory import kept, layout_of, memory_bytes
from raysft.estimate.report import advice, total_gib
from raysft.estimate.shape import flops, parameters
from raysft.model.adapter import add_adapter, require_targets
from raysft.model.load import DTYPES, load_model
from raysft.train.optimizer import decay_groups
from tests.unit.test_families import SMALL, VARIANTS, built

FIXED = ("engine.zero_stage=1", "batch.tokens_per_micro_batch=512")
PRETRAINED = ("model.init=pretrained", "model.path=base", "model.tokenizer=demo")


def config_of(*overrides: str) -> Any:
    return load_config("gpt2-tiny-cpu", [*PRETRAINED, *FIXED, *overrides])


@pytest.mark.parametrize("variant", ["lora", "dora"])
@pytest.mark.parametrize(("kind", "other"), VARIANTS)
def test_trained_parameters_and_flops_are_those_of_peft_and_torch(
    kind: str, other: dict[str, Any], variant: str
) -> None:
    hf_config = AutoConfig.for_model(kind, **SMALL | other)
    model = built(hf_config, "cpu")
    config = config_of("adapter.rank=5", f"adapter.variant={variant}")
    add_adapter(config, model)
    dims = dims_of_family(hf_config.to_dict())
    assert dims is not None
    ours = adapted(dims, config.adapter)
    assert ours.adapter is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    assert ours.adapter.trained == sum(p.numel() for p in trained)
    assert ours.adapter.largest == max(p.numel() for p in trained)
    assert parameters(ours) == parameters(dims)
    if variant == "dora":
        return  # which multiplies weights by one another, however many tokens there are
    # The gradient of the embeddings: what comes before the first adapter needs none.
    model.enable_input_require_grads()
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops()
    assert sum(flops(ours, 64, 64 * 64, 64).values()) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("target", ["c_attn", "mlp.c_proj", "c_proj", "h.1.mlp.c_fc"])
def test_named_layers_are_those_that_peft_takes(target: str) -> None:
    hf_config = AutoConfig.for_model("gpt2", **SMALL, n_inner=96)
    model = built(hf_config, "cpu")
    config = config_of("adapter.rank=3", f'adapter.target_modules=["{target}"]')
    add_adapter(config, model)
    dims = dims_of_family(hf_config.to_dict())
    assert dims is not None
    ours = adapted(dims, config.adapter).adapter
    assert ours is not None
    assert ours.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["adapter.alpha=4"], "alpha is of an adapter, and without a rank there is none"),
        (["adapter.rank=4", "model.compile=true"], "model.compile is not tried with an adapter"),
        (["adapter.rank=4", "adapter.target_modules=attn"], "neither a list of names nor"),
        (["adapter.rank=4", "adapter.target_modules=[]"], "neither a list of names nor"),
        (["adapter.rank=0"], "adapter.rank"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(overrides: list[str], part: str) -> None:
    with pytest.raises(UserError, match=part):
        config_of(*overrides)


def test_weights_from_scratch_take_no_adapter() -> None:
    with pytest.raises(UserError, match="have learnt nothing"):
        load_config("gpt2-tiny-cpu", ["adapter.rank=4"])


@pytest.mark.parametrize("target", ["q_proj", "lm_head", "wte", "ttn"])
def test_a_target_that_is_no_layer_is_told_with_those_there_are(target: str) -> None:
    """By the model, and before there is one by its arithmetic."""
    model = built(AutoConfig.for_model("gpt2", **SMALL), "cpu")
    with pytest.raises(UserError, match="it has c_attn, c_fc, c_proj"):
        require_targets(model, [target])
    adapter = Adapter(rank=4, target_modules=("c_attn", target))
    with pytest.raises(UserError, match=r"it has attn.c_attn, attn.c_proj"):
        adapted(gpt2_dims(2, 64, 4, 64, 99), adapter)


def test_frozen_parameters_are_in_no_group() -> None:
    model = built(AutoConfig.for_model("llama", **SMALL), "cpu")
    add_adapter(config_of("adapter.rank=4", "adapter.variant=dora"), model)
    matrices, vectors = decay_groups(model.named_parameters(), 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(".lora_A." in names[id(p)] or ".lora_B." in names[id(p)] for p in matrices["params"])
    assert all("magnitude" in names[id(p)] for p in vectors["params"])
    assert len(matrices["params"]) == 2 * len(vectors["params"]) == 2 * 7 * 3


def test_it_begins_as_the_model_and_alike_whatever_was_drawn_before() -> None:
    hf_config = AutoConfig.for_model("llama", **SMALL)
    ids = torch.arange(20)[None]
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(hf_config).eval()
        before = model(ids).logits
        torch.rand(len(found) + 1)
        state = torch.get_rng_state()
        add_adapter(config_of("adapter.rank=4"), model)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.allclose(model.eval()(ids).logits, before, atol=1e-6)
        found.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_model_states_by_hand() -> None:
    """GPT-2 Large on 4 workers at stage 2 in bf16, with gradients that are summed."""
    dims = adapted(gpt2_dims(36, 1280, 20, 1024, 50_257), Adapter(rank=8))
    d = 1280
    trained = 36 * 8 * ((d + 3 * d) + 2 * d + 5 * d + 5 * d)
    assert dims.adapter is not None
    assert dims.adapter.trained == trained
    layout = replace(
        layout_of(config_of()), stage=2, workers=4, weight_bytes=2, accumulates=True, on_gpu=True
    )
    parts = memory_bytes(layout, dims)
    assert parts["weights"] == 2 * (sum(parameters(dims).values()) + trained)
    assert parts["gradients"] == 4 * trained / 4
    assert parts["master weights"] == 4 * trained / 4
    assert parts["Adam moments"] == 8 * trained / 4


def test_estimate_says_when_an_adapter_makes_it_fit() -> None:
    config = config_of()
    dims = gpt2_dims(36, 1280, 20, 1024, 50_257)
    layout = layout_of(config)
    small = total_gib(layout, adapted(dims, Adapter(rank=16)))
    assert small < total_gib(layout, dims) / 2
    (line,) = advice(layout, dims, config, small + 0.1)
    assert f"an adapter fits (adapter.rank = 16), in {small:.1f} GiB" in line
    (line,) = advice(layout, dims, config, small - 0.1)
    assert "adapter" not in line


def test_a_family_has_its_layers_by_name() -> None:
    assert set(linears(gpt2_dims(1, 64, 4, 64, 99))) == {
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("setting", ["variant=lora", "dropout=0.1", "variant=dora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi"])
def test_what_a_layer_keeps_for_the_backward_pass(kind: str, setting: str, precision: str) -> None:
    """By the storages that autograd keeps, of one layer more, but those of attention itself."""
    tokens, dtype, counted = 120, DTYPES[precision], []
    scratch = load_config("gpt2-tiny-cpu", [f"engine.precision={precision}", *FIXED])
    config = config_of(f"engine.precision={precision}", "adapter.rank=4", f"adapter.{setting}")
    for layers in (1, 2):
        other = {"num_hidden_layers": layers, "num_key_value_heads": 4, "n_inner": 96}
        hf_config = AutoConfig.for_model(kind, **SMALL | other)
        model = load_model(scratch, hf_config, {}, 199).to(dtype)
        add_adapter(config, model)
        model.enable_input_require_grads()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept_bytes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, own: Any = own, found: Any = kept_bytes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tokens in tensor.shape:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            base = getattr(model.train(), model.base_model_prefix)
            alive = base(torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
        counted.append(sum(kept_bytes.values()))
        del alive
    dims = dims_of_family(hf_config.to_dict())
    assert dims is not None
    layout = layout_of(config)
    expected = kept(layout, adapted(dims, config.adapter)) - 2 * (dims.query + dims.key_value)
    found = (counted[1] - counted[0]) / tokens / layout.weight_bytes
    assert found == pytest.approx(expected, rel=0.05)
