"""Whole training steps of GPT-2 Large by raysft's own train_step, without Ray: a process a case.

    python benchmarks/gpu/steps.py OUT.jsonl CASE [--tiny]

CASE is JSON such as {"stage": 1, "recomputes": false, "tokens": 16}. tokens: of a micro-batch, in
thousands of 1,024. Other keys: "leaf" (whether ZeRO-3 gathers a block at once), "compile", and
"profile", the name of a file for the table of kernels.
"""

import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

TINY = "--tiny" in sys.argv
CUDA = torch.cuda.is_available()
T, SHAPE, VOCABULARY = (64, (2, 128, 4), 257) if TINY else (1024, (36, 1280, 20), 50_257)
MICRO_BATCHES = 2
WARMUP_STEPS, STEPS = 3, 4


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def engine_of(case: dict[str, Any]) -> Any:
    """A DeepSpeed engine of the case, made as a worker makes it."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(20_000 + os.getpid() % 20_000)
    if not CUDA:
        os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("nccl" if CUDA else "gloo", rank=0, world_size=1)
    from transformers import GPT2Config

    from raysft.config.deepspeed import deepspeed_config
    from raysft.config.load import load_config
    from raysft.model.load import load_model
    from raysft.train import engine

    if not case.get("leaf", True):
        engine.gather_by_block = lambda _: None
    layers, width, heads = SHAPE
    settings = {
        "model.init": "scratch", "model.path": "none", "model.tokenizer": "demo",
        "model.shape": f"{{n_layer={layers}, n_embd={width}, n_head={heads}, n_positions={T}}}",
        "model.activation_checkpointing": str(case["recomputes"]).lower(),
        "model.compile": str(case.get("compile", False)).lower(),
        "data.path": "demo", "data.template": "plain", "optim.cpu_kernel": "torch",
        "batch.seq_len": T, "batch.tokens_per_micro_batch": case["tokens"] * T,
        "batch.global_batch_size": case["tokens"] * MICRO_BATCHES,
        "engine.zero_stage": case["stage"], "scaling.gpus_per_worker": int(CUDA),
        "scaling.cpus_per_worker": min(8, os.cpu_count() or 1),
    }  # fmt: skip
    config = load_config("gpt2-large", [f"{key}={value}" for key, value in settings.items()])
    engine.start_deepspeed(config)
    hf_config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, n_positions=T, vocab_size=VOCABULARY,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    if CUDA and case["stage"] < 3:
        torch.set_default_device("cuda")  # random weights are made where that is fast
    model = load_model(config, hf_config, deepspeed_config(config), VOCABULARY)
    torch.set_default_device(None)
    return engine.make_engine(config, model)[0]


def batches_of(case: dict[str, Any]) -> list[Any]:
    """Packs of records of T random tokens, all supervised."""
    from raysft.data.batch import pack
    from raysft.studies.seq_len.sequences import synthetic

    each = case["tokens"]
    data = synthetic(VOCABULARY, T, each * MICRO_BATCHES, 0)
    return [pack(data, np.arange(n * each, (n + 1) * each)) for n in range(MICRO_BATCHES)]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    from raysft.estimate.devices import device_of
    from raysft.estimate.families import gpt2_dims
    from raysft.estimate.shape import flops
    from raysft.train.loss import has_plain_head
    from raysft.train.objectives.sft import SFT
    from raysft.train.step import train_step

    begun = time.perf_counter()
    engine, batches = engine_of(case), batches_of(case)
    supervised = sum(len(batch.supervised) for batch in batches)
    made_s = time.perf_counter() - begun

    def step() -> float:
        options = {"count": supervised, "lr": 1e-5, "norm_limit": float("inf")}
        return float(train_step(engine, SFT, batches, **options).loss_sum) / supervised

    losses = [step() for _ in range(WARMUP_STEPS)]
    seconds = []
    for _ in range(STEPS):
        synchronize()
        started = time.perf_counter()
        losses.append(step())  # which waits for the loss
        synchronize()
        seconds.append(time.perf_counter() - started)
    tokens = case["tokens"] * MICRO_BATCHES * T
    step_s = statistics.median(seconds)
    done = sum(flops(gpt2_dims(*SHAPE, T, VOCABULARY), tokens, tokens * T, supervised).values())
    sheet = device_of(torch.cuda.get_device_name()) if CUDA else None
    if case.get("profile"):
        write_kernels(step, Path(sys.argv[1]).with_name(case["profile"]))
    pinned = [batch.pinned() for batch in batches] if CUDA else batches
    return {
        "waits": waits(engine, pinned, supervised) if CUDA else None,
        "waits_of_twice_as_many": waits(engine, 2 * pinned, 2 * supervised) if CUDA else None,
        "step_s": step_s,
        "tokens_per_second": tokens / step_s,
        "tflops": done / step_s / 1e12,
        "mfu_datasheet": done / step_s / sheet.tflops / 1e12 if sheet else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if CUDA else None,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if CUDA else None,
        "made_s": made_s,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "logits_in_blocks": has_plain_head(engine),
    }


def waits(engine: Any, batches: list[Any], count: int) -> int:
    """How often the host waits for the GPU in a step."""
    from raysft.train.objectives.sft import SFT
    from raysft.train.step import train_step

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train_step(engine, SFT, batches, count=count, lr=1e-5, norm_limit=float("inf"))
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def write_kernels(step: Any, file: Path) -> None:
    """A table of what one step spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=kinds) as tracer:
        step()
        synchronize()
    rows = tracer.key_averages()
    tables = [
        str(rows.table(sort_by=f"self_{kind}_time_total", row_limit=40, max_name_column_width=90))
        for kind in ("cuda", "cpu")[not CUDA :]
    ]
    file.write_text("\n".join(tables))


def main() -> None:
    case = json.loads(sys.argv[2])
    try:
        line = case | measure(case)
    except Exception as error:
        line = case | {"failed": f"{type(error).__name__}: {error}"[:300]}
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps({"part": "step", **line}) + "\n")
    print(line)
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed and NCCL take their time to end


main()
