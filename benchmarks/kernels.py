"""Where the time of a training step on a CPU goes, by kind of kernel: a table that sums to 100 %.

    python benchmarks/kernels.py --tokenizer FOLDER --data RECORDS.json [--stage 3]

The real train_step of GPT-2 small in bf16, steps of 8 records in packs of 1,024 tokens, in one
process of two threads without Ray, with the allocator and settings that a worker has. Prints the
share of the peak of bf16 products, measured before and after each step, and of one profiled step
the table.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, WARMUP_STEPS = 10, 2
DIMS = (12, 768, 12, 1024, 50_257)


def as_a_worker() -> None:
    """Start again with the environment of a worker, which is read when libraries are loaded."""
    from raysft.config.load import load_config
    from raysft.runtime.connect import worker_environment

    wanted = worker_environment(load_config("gpt2-tiny-cpu")) | {"OMP_NUM_THREADS": "2"}
    if os.environ.get("BENCHMARK_IS_A_WORKER") is None:
        os.environ |= wanted | {"BENCHMARK_IS_A_WORKER": "1"}
        os.execv(sys.executable, [sys.executable, *sys.argv])


def kind(name: str, shapes: list[Any]) -> str:
    """Of an operation by its name and the shapes of its inputs."""
    vocabulary, width, heads = DIMS[4], DIMS[1], DIMS[2]
    product = name in ("aten::mm", "aten::addmm", "aten::addmm_")
    of_head = any(vocabulary in shape for shape in shapes if isinstance(shape, list | tuple))
    by_head = any(heads in shape for shape in shapes if isinstance(shape, list | tuple))
    first = shapes[0] if shapes and isinstance(shapes[0], list | tuple) else []
    if product:
        return "products of the head" if of_head else "products of the blocks"
    if "scaled_dot_product" in name or by_head or name in ("aten::cat", "aten::split"):
        return "attention, with what widens, narrows and joins"
    if of_head:
        return "softmax of the head and its gradient"
    if "gelu" in name or "layer_norm" in name or (width in first and "add" in name):
        return "GELU, norms and residuals"
    if "Adam" in name or "vector_norm" in name:
        return "norm of the gradient and update"
    if len(first) == 1 and name in ("aten::copy_", "aten::div_", "aten::mul_", "aten::fill_"):
        return "weights and gradients that ZeRO lays together"
    return "the rest, hooks of ZeRO and Python among it"


def engine_and_data(tokenizer: Path, data: Path, stage: int) -> tuple[Any, Any]:
    import torch.distributed as dist

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(20_000 + os.getpid() % 20_000)
    dist.init_process_group("gloo", rank=0, world_size=1)
    from raysft.config.deepspeed import deepspeed_config
    from raysft.config.load import load_config
    from raysft.data.dataset import prepare
    from raysft.data.loader import RankData
    from raysft.model.load import load_model, load_model_config, load_template
    from raysft.train import engine

    settings = [
        "model.init=scratch", "model.path=none", f"model.tokenizer={tokenizer.resolve()}",
        f"data.path={data.resolve()}", "data.template=plain", "data.eval_fraction=0",
        "batch.seq_len=1024", "batch.tokens_per_micro_batch=1024", "batch.global_batch_size=8",
        "model.activation_checkpointing=false", f"engine.zero_stage={stage}",
        "scaling.gpus_per_worker=0", "scaling.cpus_per_worker=2",
    ]  # fmt: skip
    config = load_config("gpt2", settings)
    engine.start_deepspeed(config)
    template = load_template(config)
    hf_config = load_model_config(config, template)
    sets = prepare(config, template)
    model = load_model(config, hf_config, deepspeed_config(config), len(template.tokenizer))
    reads = RankData(config, sets.train, sets.heldout, 0, 1)
    return engine.make_engine(config, model)[0], reads


def product_rate() -> float:
    """FLOP/s of [2048, 2048] by itself in bf16."""
    import torch

    from raysft.train.hardware_peak import best_seconds

    square = torch.randn(2048, 2048, dtype=torch.bfloat16)
    return 2 * 2048**3 / best_seconds(lambda: square @ square, square.device)


def table(step: Callable[[], None]) -> str:
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as tracer:
        step()
    spent: dict[str, float] = {}
    for row in tracer.key_averages(group_by_input_shape=True):
        name = kind(row.key, list(row.input_shapes or []))
        spent[name] = spent.get(name, 0.0) + row.self_cpu_time_total / 1e6
    total = sum(spent.values())
    rows = sorted(spent.items(), key=lambda item: -item[1])
    lines = ["| | s | share |", "|---|---|---|"]
    lines += [f"| {name} | {seconds:.2f} | {seconds / total:.1%} |" for name, seconds in rows]
    return "\n".join([*lines, f"| all | {total:.2f} | 100.0% |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage", type=int, default=3)
    arguments = parser.parse_args()
    as_a_worker()
    engine, reads = engine_and_data(arguments.tokenizer, arguments.data, arguments.stage)
    from raysft.estimate.families import gpt2_dims
    from raysft.estimate.shape import flops
    from raysft.train.memory import keep_freed_memory
    from raysft.train.objectives.sft import SFT
    from raysft.train.step import train_step

    def step(number: int) -> float:
        """FLOP/s."""
        data = reads.at(number)
        started = time.perf_counter()
        train_step(
            engine,
            SFT,
            data.batches,
            count=data.loss_weight,
            lr=3e-4,
            norm_limit=float("inf"),
        )
        seconds = time.perf_counter() - started
        done = flops(gpt2_dims(*DIMS), data.tokens, data.pairs, data.supervised_tokens)
        print(f"step {number}: {data.tokens} tokens, {seconds:.2f} s", flush=True)
        return sum(done.values()) / seconds

    shares, peaks = [], []
    for number in range(STEPS):
        before, rate, after = product_rate(), step(number), product_rate()
        shares.append(2 * rate / (before + after))
        peaks += [before, after]
        if number == 0:
            keep_freed_memory()
    steady = sorted(shares[WARMUP_STEPS:])
    print(
        f"share of the peak {statistics.median(steady):.1%} ({steady[0]:.1%} to {steady[-1]:.1%}), "
        f"peak {statistics.median(peaks) / 1e9:.0f} GFLOP/s"
    )
    print(table(lambda: print(f"{step(STEPS) / 1e9:.0f} GFLOP/s with the profiler")))
    os._exit(0)


if __name__ == "__main__":
    main()
