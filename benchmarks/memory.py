"""Peak memory of a worker, predicted and measured, in several layouts.

    python benchmarks/memory.py --out DIR [--model FOLDER]

Of GPT-2 small, or of the model whose config.json is in FOLDER, from random weights. Runs `raysft
bench seq-len` for each layout that DIR has no results of, and prints one table of all.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from raysft.config.schema import Config
from raysft.estimate.memory import memory_gib
from raysft.estimate.shape import dims_of
from raysft.studies.seq_len.run import Case, case_config

GPT2 = ["model.shape={n_layer=12,n_embd=768,n_head=12,vocab_size=50257}"]
COMMON = [
    "bench.seq_lens=[512,1024]",
    "bench.steps=1",
    "bench.warmup_steps=1",
    "batch.global_batch_size=2",
    "batch.tokens_per_micro_batch=none",
]
TWO_WORKERS = ["scaling.workers=2", "scaling.cpus_per_worker=1", "batch.global_batch_size=4"]
LAYOUTS = {
    "s3w1": ["optim.cpu_kernel=auto"],
    "s3w2": TWO_WORKERS,
    "s1w1": ["engine.zero_stage=1", "optim.cpu_kernel=auto"],
    "s1w2": ["engine.zero_stage=1", *TWO_WORKERS],
    "s2w2": ["engine.zero_stage=2", *TWO_WORKERS],
    "ck": [
        "model.activation_checkpointing=true",
        "batch.micro_batch_size=2",
        "batch.global_batch_size=4",
    ],
}


def run(name: str, out: Path, model: list[str]) -> Path:
    results = out / name / "results.json"
    if not results.exists():
        words = [w for s in (*model, *COMMON, *LAYOUTS[name]) for w in ("--set", s)]
        raysft = str(Path(sys.executable).parent / "raysft")
        command = [raysft, "bench", "seq-len", "bench-seq-len", "--name", name]
        subprocess.run([*command, "--set", f"run.storage={out}", *words], check=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    out, folder = arguments.out.resolve(), arguments.model
    model = ["model.shape=none", f"model.path={folder.resolve()}"] if folder else GPT2
    print("| stage | workers | T | micro-batch, tokens | checkpointing | predicted | measured | |")
    print("|---|---|---|---|---|---|---|---|")
    for name in LAYOUTS:
        found = json.loads(run(name, out, model).read_text())
        config = Config.model_validate_json(json.dumps(found["config"]))
        for case in found["cases"]:
            if "sequences" not in case["tables"] or case["status"] != "done":
                continue
            one = case_config(config, Case(case["seq_len"], case["sequences"], ()))
            predicted = sum(memory_gib(one, dims_of(one)).values())
            measured = case["peak_memory_gib"]
            cells = [
                one.engine.zero_stage,
                one.scaling.workers,
                one.batch.seq_len,
                one.batch.micro_batch_size * one.batch.seq_len,
                "yes" if one.model.activation_checkpointing else "no",
                f"{predicted:.2f}",
                f"{measured:.2f}",
                f"{predicted / measured - 1:+.0%}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


main()
