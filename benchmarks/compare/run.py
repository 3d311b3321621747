"""raysft against its peers and a bare PyTorch loop, in turns, in one run.

    python benchmarks/compare/run.py --tokenizer FOLDER --data gpteacher_codegen.json --out DIR

Writes DIR/results.json and DIR/report.md: medians over the rounds of tokens a second, memory and
the held-out loss, each with its spread, and ratios. `--model FOLDER` starts from a pretrained model
instead of random weights. `--only raysft-zero3,bare` chooses contenders;
`--peers PYTHON` is the interpreter that has TRL (the extra `compare` installs it into this one).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from common import (
    EVAL_RECORDS,
    LORA,
    LORA_RATE,
    Task,
    count_tokens,
    heldout_loss,
    split,
    tree_memory,
)

HERE = Path(__file__).parent
# Left out of the rates, for everyone: the first allocates and compiles, and in the second raysft's
# workers, which gave back what the first had left, touch their memory anew.
WARMUP_STEPS = 2
SHAPES = {  # n_layer, n_embd, n_head
    "tiny": (2, 128, 4),
    "gpt2": (12, 768, 12),
    "gpt2-large": (36, 1280, 20),
}
SCRIPTS = {
    "bare": ["bare.py"],
    "bare-fp32": ["bare.py", "--fp32"],
    "bare-compiled": ["bare.py", "--compiled"],
    "trl": ["trl_sft.py"],
    "trl-packed": ["trl_sft.py", "--packed"],
    "trl-best": ["trl_sft.py", "--best"],
    "hf-deepspeed-zero3": ["hf_deepspeed.py"],
    "trl-lora": ["trl_sft.py", "--lora"],
    "trl-lora-best": ["trl_sft.py", "--lora", "--best"],
}
RAYSFT = {
    "raysft-zero3": ["engine.zero_stage=3", "scaling.workers=1", "scaling.cpus_per_worker=2"],
    "raysft-zero1": ["engine.zero_stage=1", "scaling.workers=1", "scaling.cpus_per_worker=2"],
    "raysft-2-workers": ["engine.zero_stage=3", "scaling.workers=2", "scaling.cpus_per_worker=1"],
    "raysft-padded": ["engine.zero_stage=3", "scaling.workers=1", "scaling.cpus_per_worker=2",
                      "batch.packing=false"],
    "raysft-lora": ["engine.zero_stage=1", "scaling.workers=1", "scaling.cpus_per_worker=2",
                    f"adapter.rank={LORA['r']}", f"adapter.alpha={LORA['lora_alpha']}"],
}  # fmt: skip


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def make_model(folder: Path, tokenizer_path: Path, shape: str) -> None:
    """The weights that everyone starts from: GPT-2's architecture, random."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    n_layer, n_embd, n_head = SHAPES[shape]
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=n_layer, n_embd=n_embd, n_head=n_head,
        bos_token_id=end, eos_token_id=end, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    with torch.device("cuda" if on_gpu() else "cpu"):
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# On one GPU; what is there of it is all raysft's.
ON_GPU = ["scaling.workers=1", "scaling.gpus_per_worker=1", "scaling.cpus_per_worker=6"]
ONLY_ON_GPU = {
    "raysft-zero1-compiled": ["engine.zero_stage=1", "model.compile=true"],
}


def raysft_command(task: Task, folder: Path, overrides: list[str]) -> list[str]:
    """The real command line, on the same records."""
    rate = LORA_RATE if any(key.startswith("adapter.") for key in overrides) else 1
    train, heldout = split(task.data, task.records_per_step * task.steps)
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "heldout.json").write_text(json.dumps(heldout))
    settings = [
        "model.init=pretrained",
        f"model.path={task.model}",
        "model.tokenizer=none",
        "data.template=plain",
        f"data.path={folder / 'train.json'}",
        f"data.eval_path={folder / 'heldout.json'}",
        f"eval.max_records={EVAL_RECORDS}",
        "eval.every_steps=0",
        "eval.exact_match_records=0",
        f"run.storage={folder}",
        f"run.max_steps={task.steps}",
        "run.samples=0",
        f"batch.seq_len={task.seq_len}",
        f"batch.global_batch_size={task.records_per_step}",
        f"batch.tokens_per_micro_batch={task.pack_tokens}",
        f"batch.micro_batch_size={task.records_per_step}",
        f"optim.lr={task.learning_rate * rate}",
        "optim.weight_decay=0",
        "optim.cpu_kernel=auto",
        "schedule.warmup_ratio=0",
        "schedule.min_lr_ratio=1",
        "engine.precision=bf16",
        "checkpoint.every_steps=0",
        "log.every_steps=1",
        "log.tensorboard=false",
        *overrides,
    ]
    command = [str(Path(sys.executable).parent / "raysft"), "train", "gpt2-tiny-cpu", "--json"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return [*command, "--name", "run", *sets]


def run_watched(command: list[str], log: Path) -> tuple[str, float, float]:
    """Standard output, seconds, and the largest memory of the process tree in GiB."""
    started, peak = time.monotonic(), 0
    environment = os.environ | {
        "OMP_NUM_THREADS": str(min(8, os.cpu_count() or 1)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=HERE
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            # Rarely: the kernel walks all pages for it, and holds up whoever allocates meanwhile.
            peak = max(peak, tree_memory(watched))
            time.sleep(5)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{command} failed: see {log}")
    return process.stdout.read(), time.monotonic() - started, peak / 2**30


def run_one(name: str, task: Task, folder: Path, peers: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    if name in RAYSFT | ONLY_ON_GPU:
        overrides = (RAYSFT | ONLY_ON_GPU)[name]
        command = raysft_command(task, folder, [*overrides, *(ON_GPU if on_gpu() else [])])
        output, seconds, tree_gib = run_watched(command, folder / "log.txt")
        summary = json.loads(output.splitlines()[-1])
        lines = (folder / "run/metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines if "step_time_s" in line]
        result = {
            "step_times_s": [step["step_time_s"] for step in steps],
            "step_tokens": [round(s["tokens_per_second"] * s["step_time_s"]) for s in steps],
            "peak_memory_gib": summary["peak_memory_gib"],
        }
        model_dir = folder / "run/model"
    else:
        model_dir = folder / "model"
        raw = vars(task) | {"output": model_dir}
        (folder / "task.json").write_text(json.dumps(raw, default=str))
        script, *options = SCRIPTS[name]
        python = sys.executable if name.startswith("bare") else peers
        command = [python, str(HERE / script), str(folder / "task.json"), *options]
        output, seconds, tree_gib = run_watched(command, folder / "log.txt")
        result = json.loads(output.splitlines()[-1])
    result |= {"wall_s": seconds, "tree_memory_gib": tree_gib}
    return result | {"heldout_loss": heldout_loss(model_dir, task)}


def summarise(results: dict[str, list[dict[str, Any]]], tokens: tuple[int, int]) -> dict[str, Any]:
    """Medians, least and most over the rounds, of the steps after warm-up."""
    table = {}
    for name, rounds in results.items():
        rates = []
        for one in rounds:
            # TRL, which tokenises prompt and response together, comes to one token more.
            assert abs(sum(one["step_tokens"]) / tokens[0] - 1) < 0.01, f"{name} saw other tokens"
            steady = slice(WARMUP_STEPS, None)
            rates.append(sum(one["step_tokens"][steady]) / sum(one["step_times_s"][steady]))
        columns = {
            "tokens_per_second": rates,
            "supervised_tokens_per_second": [rate * tokens[1] / tokens[0] for rate in rates],
            **{k: [r[k] for r in rounds]
               for k in ("peak_memory_gib", "tree_memory_gib", "heldout_loss", "wall_s")},
        }  # fmt: skip
        table[name] = {
            key: {"median": statistics.median(v), "least": min(v), "most": max(v)}
            for key, v in columns.items()
        }
    return table


def markdown(table: dict[str, Any], versions: str, command: str) -> str:
    headings = [
        "",
        "tokens/s",
        "supervised tokens/s",
        "against bare",
        "training process, GiB",
        "all processes, GiB",
        "held-out loss",
        "whole command, s",
    ]
    lines = [versions, "", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    bare = table.get("bare", {}).get("tokens_per_second", {}).get("median")
    for name, row in sorted(table.items(), key=lambda i: -i[1]["tokens_per_second"]["median"]):
        rate = row["tokens_per_second"]
        cells = [
            name,
            f"{rate['median']:.0f} ({rate['least']:.0f} to {rate['most']:.0f})",
            f"{row['supervised_tokens_per_second']['median']:.0f}",
            f"{rate['median'] / bare:.2f}" if bare else "",
            *(f"{row[k]['median']:.2f}" for k in ("peak_memory_gib", "tree_memory_gib")),
            f"{row['heldout_loss']['median']:.3f}",
            f"{row['wall_s']['median']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "```", command, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", type=Path, help="a pretrained one")
    start.add_argument("--tokenizer", type=Path, help="of a GPT-2 of random weights, see --shape")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join([*RAYSFT, *SCRIPTS]))
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--records-per-step", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="adapters: 10 times")
    parser.add_argument("--pack-tokens", type=int, help="default: --seq-len")
    parser.add_argument("--peers", default=sys.executable)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True)
    if arguments.model is None:
        make_model(out / "start", arguments.tokenizer, arguments.shape)
    task = Task(
        model=(arguments.model or out / "start").resolve(), data=arguments.data.resolve(),
        seq_len=arguments.seq_len, records_per_step=arguments.records_per_step,
        steps=arguments.steps, learning_rate=arguments.learning_rate,
        pack_tokens=arguments.pack_tokens or arguments.seq_len, output=out,
    )  # fmt: skip
    import torch
    import transformers

    from raysft import __version__

    tokens = count_tokens(task, transformers.AutoTokenizer.from_pretrained(task.model))
    results: dict[str, list[dict[str, Any]]] = {}
    versions = (
        f"raysft {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {os.cpu_count()} cores; {task.steps} steps of "
        f"{task.records_per_step} records, at most {task.seq_len} tokens each, {tokens[0]:,} "
        f"tokens in all, {tokens[1]:,} supervised; {arguments.rounds} rounds in turns"
    )
    for number in range(arguments.rounds):
        for name in arguments.only.split(","):
            one = run_one(name, task, out / f"round-{number + 1}" / name, arguments.peers)
            results.setdefault(name, []).append(one)
            seconds = sum(one["step_times_s"][WARMUP_STEPS:])
            print(f"round {number + 1} {name}: {seconds:.1f} s", flush=True)
            table = summarise(results, tokens)
            raw = {"versions": versions, "tokens": tokens, "rounds": results, "table": table}
            (out / "results.json").write_text(json.dumps(raw, indent=1))
    report = markdown(table, versions, " ".join(["python", *sys.argv]))
    (out / "report.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
