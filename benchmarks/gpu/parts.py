"""Parts of a training step by themselves: products, attention and the head, each by its variants.

    python benchmarks/gpu/parts.py OUT.jsonl [peak] [plans] [attention] [head] [--tiny]

A line of JSON for each measurement: `ms` by the device's clock, `host_ms` until it was launched.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raysft.model import attention
from raysft.train import head_nll

TINY = "--tiny" in sys.argv
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
T, WIDTH, HEADS, VOCABULARY = (64, 128, 4, 257) if TINY else (1024, 1280, 20, 50_257)
PACKS = (256,) if TINY else (4096, 16_384)


def say(**line: Any) -> None:
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(
        "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items())
    )


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], rounds: int = 10) -> dict[str, float]:
    """Medians."""
    for _ in range(2 if TINY else 3):
        work()
    synchronize()
    on_device, on_host = [], []
    for _ in range(2 if TINY else rounds):
        started = time.perf_counter()
        if CUDA:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        work()
        on_host.append(time.perf_counter() - started)
        if CUDA:
            end.record()
            synchronize()
            on_device.append(begin.elapsed_time(end))
    host_ms = statistics.median(on_host) * 1e3
    return {"ms": statistics.median(on_device) if CUDA else host_ms, "host_ms": host_ms}


def peak() -> None:
    """What the device can do: products of the model's own layers, and copies."""
    for rows in PACKS:
        for inner, outer in ((WIDTH, 3 * WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)):
            x, w = (
                torch.randn(s, device=DEVICE, dtype=DTYPE) for s in ((rows, inner), (inner, outer))
            )
            bias = torch.randn(outer, device=DEVICE, dtype=DTYPE)
            times = timed(lambda: torch.addmm(bias, x, w))  # noqa: B023 (called at once)
            tflops = 2 * rows * inner * outer / times["ms"] / 1e9
            say(part="linear", shape=f"{rows} x {inner} x {outer}", tflops=tflops, **times)
    source = torch.randn(2**20 if TINY else 2**29, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    times = timed(lambda: target.copy_(source))
    say(part="copy", gbs=2 * source.nbytes / times["ms"] / 1e6, **times)


def plans() -> None:
    """What the first call of a length costs where cuDNN's attention is left on."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    pack = PACKS[0]
    for length in (301, 302, 301, 1024) if not TINY else (30, 31, 30):
        qkv = torch.randn(3, 1, HEADS, pack, WIDTH // HEADS, device=DEVICE, dtype=DTYPE)
        q, k, v = (x[:, :, :length].requires_grad_() for x in qkv)
        started = time.perf_counter()
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        synchronize()
        say(part="first call with cuDNN", length=length, ms=(time.perf_counter() - started) * 1e3)
    torch.backends.cuda.enable_cudnn_sdp(False)


def lengths_like_alpaca(total: int) -> list[int]:
    source, found = random.Random(0), list[int]()
    while sum(found) < total:
        length = int(source.lognormvariate(4.6, 0.6)) + 8
        found.append(min(length, T, total - sum(found)))
    return found


def by_slices(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """A call a record, as raysft did before: the backward of a slice is as long as the pack."""
    begin, outputs = 0, []
    for length in lengths:
        part = (x[:, :, begin : begin + length] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*part, is_causal=True))
        begin += length
    return torch.cat(outputs, dim=2).transpose(1, 2)


def measure_attention() -> None:
    for total in PACKS:
        cases = {f"{total} of {T}": [T] * (total // T), f"{total}": lengths_like_alpaca(total)}
        for name, lengths in cases.items():
            compare_attention(name, lengths)


def compare_attention(case: str, lengths: list[int]) -> None:
    """Forward and backward of every variant, and how far its results are from the first one's."""
    shape = (1, HEADS, sum(lengths), WIDTH // HEADS)
    qkv = [torch.randn(shape, device=DEVICE, dtype=DTYPE).requires_grad_() for _ in range(3)]
    grad = torch.randn(1, shape[2], HEADS, shape[3], device=DEVICE, dtype=DTYPE)
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    variants: dict[str, Callable[[], Tensor]] = {
        "slices": lambda: by_slices(*qkv, lengths),
        "split": lambda: attention.by_record(*qkv, lengths, partial(attention.fused, None, 0.0)),
    }
    if CUDA:
        variants["varlen"] = lambda: attention.varlen(*qkv, borders, max(lengths), None)
    wanted: list[Tensor] = []
    for name, variant in variants.items():

        def both(variant: Callable[[], Tensor] = variant) -> list[Tensor]:
            for x in qkv:
                x.grad = None
            output = variant()
            output.backward(grad)
            return [output.detach(), *(x.grad for x in qkv if x.grad is not None)]

        found = [x.float() for x in both()]
        wanted = wanted or found
        gap = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
        say(part="attention", case=case, records=len(lengths), variant=name, gap=gap, **timed(both))


def measure_head() -> None:
    """Loss and gradients of the head, all tokens supervised, by the size of a block of logits, and
    with rows that are aligned or not; cross_entropy holds all logits."""
    for tokens in PACKS:
        hidden = torch.randn(tokens, WIDTH, device=DEVICE, dtype=DTYPE).requires_grad_()
        weight = torch.randn(VOCABULARY, WIDTH, device=DEVICE, dtype=DTYPE) * 0.02
        weight.requires_grad_()
        targets = torch.randint(0, VOCABULARY, (tokens,), device=DEVICE)
        flops = 6 * tokens * VOCABULARY * WIDTH

        def whole() -> None:
            logits = F.linear(hidden, weight)  # noqa: B023 (called within this round)
            F.cross_entropy(logits.float(), targets, reduction="sum").backward()  # noqa: B023

        def in_blocks() -> None:
            head_nll.HeadNLL.apply(hidden, weight, None, targets).backward()  # noqa: B023

        kind = DEVICE.type
        sizes = (head_nll.BLOCK_BYTES[kind],) if TINY else (64 << 20, 256 << 20, 1 << 30, 4 << 30)
        before = head_nll.BLOCK_BYTES[kind], head_nll.ALIGNED[kind]
        for aligned in (1, 64):
            for size in sizes:
                head_nll.BLOCK_BYTES[kind], head_nll.ALIGNED[kind] = size, aligned
                times = timed(in_blocks)
                say(part="head", tokens=tokens, variant=f"rows aligned to {aligned}",
                    block_mib=size >> 20, tflops=flops / times["ms"] / 1e9, **times)  # fmt: skip
        head_nll.BLOCK_BYTES[kind], head_nll.ALIGNED[kind] = before
        times = timed(whole)
        say(part="head", tokens=tokens, variant="cross_entropy", block_mib=0,
            tflops=flops / times["ms"] / 1e9, **times)  # fmt: skip


PARTS = {"peak": peak, "plans": plans, "attention": measure_attention, "head": measure_head}


def main() -> None:
    wanted = [word for word in sys.argv[2:] if not word.startswith("--")] or list(PARTS)
    for name in wanted:
        try:
            PARTS[name]()
        except Exception as error:  # one part that fails takes no other with it
            say(part=name, failed=f"{type(error).__name__}: {error}"[:300])


main()
