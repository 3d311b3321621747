"""How near the forward and backward pass come to the CPU's own matrix products.

    python benchmarks/utilisation.py --tokenizer FOLDER --data FILE --out DIR

Trains GPT-2 Large at full size, from random weights, for a few steps by the real command line: one
worker, ZeRO-3, bf16, packs of 1,024 tokens, no activation checkpointing. Takes forward and backward
from `--profile`, counts their floating-point operations from the tokens they saw, and sets the rate
beside that of bare matrix products of the model's largest layer, before and after.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

SHAPES = {"gpt2": (12, 768, 12), "gpt2-large": (36, 1280, 20)}  # n_layer, n_embd, n_head
SEQ_LEN = 1024
STEPS = 2
PROFILED = 1  # the second; a longer trace does not fit beside GPT-2 Large in 24 GiB


def product_rate(width: int, dtype: torch.dtype) -> float:
    """GFLOP/s of [1024, width] by [width, 4 width], the median of 15."""
    a = torch.randn(SEQ_LEN, width).to(dtype)
    b = torch.randn(width, 4 * width).to(dtype)
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * SEQ_LEN * width * 4 * width / statistics.median(seconds) / 1e9


def product_rates(width: int) -> dict[str, float]:
    return {name: product_rate(width, getattr(torch, name)) for name in ("bfloat16", "float32")}


def flops(shape: str, tokens: float, supervised: float, vocabulary: int) -> float:
    """6 x weights x tokens of the blocks, and of the head at supervised tokens; no attention.

    Kaplan et al. 2020, section 2.1: 2 for the forward pass and 4 for the backward.
    """
    n_layer, n_embd, _ = SHAPES[shape]
    return 6 * (12 * n_layer * n_embd**2 * tokens + vocabulary * n_embd * supervised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-large")
    arguments = parser.parse_args()
    n_layer, n_embd, n_head = SHAPES[arguments.shape]
    shape = f"n_layer={n_layer}, n_embd={n_embd}, n_head={n_head}, n_positions={SEQ_LEN}"
    settings = [
        "model.init=scratch",
        f"model.tokenizer={arguments.tokenizer.resolve()}",
        f"model.shape={{{shape}}}",
        f"data.path={arguments.data.resolve()}",
        f"run.storage={arguments.out.resolve()}",
        f"run.max_steps={STEPS}",
        "run.samples=0",
        "eval.max_records=4",
        "eval.every_steps=0",
        "eval.exact_match_records=0",
        f"batch.seq_len={SEQ_LEN}",
        f"batch.tokens_per_micro_batch={SEQ_LEN}",
        "batch.global_batch_size=8",
        "optim.cpu_kernel=auto",
        "engine.zero_stage=3",
        "engine.precision=bf16",
        "scaling.workers=1",
        "scaling.cpus_per_worker=2",
        "checkpoint.every_steps=0",
        "log.every_steps=1",
        f"log.profile_steps={PROFILED}",
    ]
    raysft = str(Path(sys.executable).parent / "raysft")
    command = [raysft, "train", "gpt2-tiny-cpu", "--name", "run"]
    command += [word for setting in settings for word in ("--set", setting)]
    before = product_rates(n_embd)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    after = product_rates(n_embd)
    seconds = sum(
        float(re.search(rf"^ *{phase} +([\d.]+)", done.stderr, re.M)[1])  # type: ignore[index]
        for phase in ("forward", "backward")
    )
    folder = arguments.out / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if 1 < line["step"] <= 1 + PROFILED]
    tokens, supervised = (
        sum(step[key] * step["step_time_s"] for step in steps)
        for key in ("tokens_per_second", "supervised_tokens_per_second")
    )
    vocabulary = len(AutoTokenizer.from_pretrained(arguments.tokenizer))
    rate = flops(arguments.shape, tokens, supervised, vocabulary) / seconds / 1e9
    print(
        f"{arguments.shape}: {tokens:.0f} tokens, {supervised:.0f} supervised, in {seconds:.1f} s"
    )
    print(f"of forward and backward: {rate:.0f} GFLOP/s")
    for name in before:
        product = (before[name] + after[name]) / 2
        rates = f"{before[name]:.0f} before, {after[name]:.0f} after"
        print(f"{name} products: {rates}: {rate / product:.0%}")
    print(f"largest memory of the worker: {max(s['peak_memory_gib'] for s in steps):.2f} GiB")


main()
