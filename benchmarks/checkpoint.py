"""What a checkpoint costs at the size of GPT-2 small: how long training waits, and slows after it.

    python benchmarks/checkpoint.py --out DIR [--rounds 3] [--every 5]

Runs the same steps with checkpoints and without, in turns. Runs that DIR has are not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

STEPS = 16
SETTINGS = [
    "model.shape={n_layer=12,n_embd=768,n_head=12,n_positions=512,vocab_size=50257}",
    "engine.precision=bf16",
    "optim.cpu_kernel=auto",
    "scaling.workers=1",
    "scaling.cpus_per_worker=2",
    f"run.max_steps={STEPS}",
    "run.samples=0",
    "eval.every_steps=0",
    "eval.max_records=8",
    "eval.exact_match_records=0",
    "log.every_steps=1",
    "log.tensorboard=false",
    "batch.global_batch_size=32",
    "checkpoint.keep=1",
]
RAYSFT = Path(sys.executable).parent / "raysft"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=5)
    options = parser.parse_args()
    print(
        "| round | checkpoints | waited for each, s | a step, s | the next, s | whole run, ratio |"
    )
    print("|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        without = run(options.out, f"without-{number}", 0)
        summary, steps = run(options.out, f"with-{number}", options.every)
        print(row(number, summary, steps, without[1], options.every), flush=True)


def run(out: Path, name: str, every: int) -> tuple[dict[str, Any], list[float]]:
    """Its summary, and the seconds of each step."""
    folder = out / name
    if not (folder / "model").exists():
        settings = [*SETTINGS, f"checkpoint.every_steps={every}", f"run.storage={out}"]
        words = [word for setting in settings for word in ("--set", setting)]
        subprocess.run([RAYSFT, "train", "gpt2-tiny-cpu", "--name", name, *words], check=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step_time_s") for line in lines]
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary, steps


def row(
    number: int, summary: dict[str, Any], steps: list[float], alone: list[float], every: int
) -> str:
    """steps, alone: with and without checkpoints; the first two of each are warm-up."""
    count, waited = summary["checkpoints"], summary["checkpoint_stall_s"]
    after = [steps[step] for step in range(every + 1, STEPS + 1, every)]
    whole = (sum(steps[3:]) + waited) / sum(alone[3:])
    cells = [
        number,
        count,
        f"{waited / count:.2f}",
        f"{median(alone[3:]):.2f}",
        f"{median(after):.2f}",
        f"{whole:.3f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
