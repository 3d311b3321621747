"""bf16 products computed in fp32: the same results, kept in bf16, whatever the module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from raysft.model import cpu_bf16
from raysft.model.load import fuse_gelu
from tests.unit.test_loss import masked, supervised_nll

INTEL = "vendor_id : GenuineIntel\nflags : fpu avx512f avx512_bf16"
AMD = "vendor_id : AuthenticAMD\nflags : fpu avx512f"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    cpu_bf16.choose("bf16")


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (INTEL, "fp32"),
        (INTEL + " amx_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : fpu avx2", "fp32"),
        (AMD, "fp32"),
        (AMD + " avx512_bf16", "bf16"),
        ("Features : fp asimd bf16", "bf16"),
    ],
)
def test_auto_goes_by_what_the_cpu_has(tmp_path: Path, cpu: str, expected: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpu)
    assert cpu_bf16.choose("auto", tmp_path / "cpuinfo").startswith(expected)


def test_a_machine_that_says_nothing_is_left_to_pytorch(tmp_path: Path) -> None:
    assert cpu_bf16.choose("auto", tmp_path / "absent").startswith("bf16")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv1d", "linear"])
def test_linear_layers_round_once(kind: str, bias: bool) -> None:
    """Against the same layer in fp64: no output or gradient is off by more than one rounding."""
    torch.manual_seed(0)
    module: Any = Conv1D(48, 64) if kind == "conv1d" else nn.Linear(64, 48, bias=bias)
    module = module.to(torch.bfloat16)
    nn.init.normal_(module.weight)
    exact: Any = Conv1D(48, 64) if kind == "conv1d" else nn.Linear(64, 48, bias=bias)
    exact = exact.double()
    exact.load_state_dict(module.state_dict())
    x = torch.randn(3, 5, 64).bfloat16().requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    grad = torch.randn(3, 5, 48).bfloat16()

    module.forward = cpu_bf16.wide_forward(module, out_first=kind == "linear")
    y, exact_y = module(x), exact(exact_x)
    y.backward(grad)
    exact_y.backward(grad.double())

    pairs = [(y, exact_y), (x.grad, exact_x.grad), (module.weight.grad, exact.weight.grad)]
    if module.bias is not None:
        pairs.append((module.bias.grad, exact.bias.grad))
    for found, wanted in pairs:
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted.detach(), rtol=2**-8, atol=1e-5)


def models() -> list[Any]:
    small = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, **small)
    llama = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        tie_word_embeddings=False, **small,
    )  # fmt: skip
    return [GPT2LMHeadModel(gpt2).eval(), LlamaForCausalLM(llama).eval()]


@pytest.mark.parametrize("index", [0, 1], ids=["gpt2", "llama"])
def test_whole_model_is_nearer_to_fp32(index: int) -> None:
    """Loss and gradients of a bf16 model: no further from fp32 than with bf16 products."""
    torch.manual_seed(0)
    exact = models()[index].bfloat16().float()
    batch = masked(torch.randint(0, 50, (3, 12)), lengths=[12, 7, 9], prompts=[5, 2, 8])

    def gradients(model: Any) -> torch.Tensor:
        model.zero_grad()
        supervised_nll(model, batch).backward()
        return torch.cat([p.grad.double().flatten() for p in model.parameters()])

    wanted = gradients(exact)
    errors = {}
    for choice in ("bf16", "fp32"):
        model = models()[index].bfloat16()
        model.load_state_dict(exact.state_dict())
        cpu_bf16.choose(choice)
        fuse_gelu(model)
        cpu_bf16.widen_linears(model)
        errors[choice] = float((gradients(model) - wanted).norm() / wanted.norm())
    assert 0 < errors["fp32"] < 1.05 * errors["bf16"]
    assert errors["fp32"] < 0.02


def test_fused_gelu_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = models()[0]
    ids = torch.randint(0, 50, (2, 9))
    before = model(ids).logits
    fuse_gelu(model)
    assert not [m for m in model.modules() if type(m).__name__ == "NewGELUActivation"]
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)
