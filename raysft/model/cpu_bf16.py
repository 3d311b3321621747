"""Matrix products of bf16 tensors on CPUs that multiply bf16 slower than fp32.

A bf16 product is accumulated in fp32 and rounded once at its end. Widening both factors to fp32,
multiplying there and rounding the result gives the same up to the order of the sum. On Intel CPUs
without units for bf16 matrices (AMX) that is also the faster way: 2 times where bf16 has its own
vector instructions, 5 times where it is emulated. On AMD's with avx512_bf16 it is not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Choice = Literal["auto", "bf16", "fp32"]
_widened = False  # of this process, as torch's own settings of precision are


def choose(choice: Choice, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Say for this process how bf16 tensors are multiplied on the CPU. Returns how, and why."""
    global _widened
    if choice == "auto":
        fast = has_fast_bf16(cpuinfo)
        reason = "as PyTorch does on this CPU" if fast else "this CPU multiplies bf16 slower"
    else:
        fast, reason = choice == "bf16", "engine.cpu_products"
    _widened = not fast
    return f"{'bf16' if fast else 'fp32'} ({reason})"


def has_fast_bf16(cpuinfo: Path) -> bool:
    """Whether bf16 products outrun fp32 ones, by what the kernel says of the CPU.

    AMX does. AMD's avx512_bf16 (Zen 4) has 2 to 3 times the rate of its fp32; Intel's, without AMX,
    half of it. What says nothing of the kind, as ARM, is left to PyTorch.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return True
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), None)
    if flags is None:
        return True
    return "amx_bf16" in flags or ("AuthenticAMD" in text and "avx512_bf16" in flags)


def widen(x: Tensor) -> Tensor:
    """x in the type that products are computed in: itself, or its copy in fp32."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16
    return x.float() if _widened and on_cpu else x


class WideLinear(torch.autograd.Function):
    """x [n, in] by weight, [in, out] or with `out_first` [out, in], plus bias [out], in fp32.

    What is kept for the backward pass is bf16. The weight comes as the parameter itself, not as a
    view of it: ZeRO-3 empties it after the forward pass and fills it again before the backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_first: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.out_first = out_first
        wide = weight.float().T if out_first else weight.float()
        y = x.float() @ wide if bias is None else torch.addmm(bias.float(), x.float(), wide)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.float()
        wide = weight.float() if ctx.out_first else weight.float().T
        grad_x = (grad @ wide).to(x.dtype)
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:  # not where it is frozen
            wide = grad.T @ x.float() if ctx.out_first else x.float().T @ grad
            grad_weight = wide.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None


def widen_linears(model: Any) -> None:
    """Let every linear layer of a bf16 model on a CPU multiply in fp32, where that was chosen.

    The LM head is left alone: the loss computes it.
    """
    from transformers.pytorch_utils import Conv1D

    if not _widened:
        return
    head = model.get_output_embeddings()
    for module in model.modules():
        linear = isinstance(module, Conv1D | nn.Linear) and module is not head
        if linear and module.weight.dtype == torch.bfloat16:
            module.forward = wide_forward(module, out_first=isinstance(module, nn.Linear))


def wide_forward(module: Any, *, out_first: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        y: Tensor = WideLinear.apply(rows, module.weight, module.bias, out_first)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    return forward
