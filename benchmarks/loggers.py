"""What loggers cost a run: TensorBoard, Weights & Biases and MLflow together, against none.

    python benchmarks/loggers.py --out DIR [--rounds 3] [--every 1]

Runs the same steps with and without them, in turns, on two workers that leave no core idle.
MLFLOW_TRACKING_URI may name a server; else MLflow writes files in DIR. Weights & Biases writes
files, too. Runs that DIR has are not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

STEPS, WARMUP = 120, 20
SETTINGS = [
    f"run.max_steps={STEPS}",
    "run.samples=0",
    "eval.every_steps=0",
    "eval.max_records=8",
    "eval.exact_match_records=0",
    "checkpoint.every_steps=0",
]
WITH = ["log.tensorboard=true", "log.wandb=cost", "log.mlflow=cost"]
WITHOUT = ["log.tensorboard=false"]
RAYSFT = Path(sys.executable).parent / "raysft"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="steps between lines of metrics")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print("| round | load before | none, s a step | all, s a step | ratio | whole run, ratio |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for number in range(1, options.rounds + 1):
        load = os.getloadavg()[0]
        every = f"log.every_steps={options.every}"
        none, none_wall = run(out, f"none-{number}", [*WITHOUT, every])
        every_one, wall = run(out, f"all-{number}", [*WITH, every])
        ratios.append(every_one / none)
        cells = [f"{load:.1f}", f"{none:.4f}", f"{every_one:.4f}", f"{ratios[-1]:.4f}"]
        print(f"| {number} | {' | '.join(cells)} | {wall / none_wall:.3f} |", flush=True)
    print(f"\nmedian ratio of step times: {median(ratios):.4f}")


def run(out: Path, name: str, settings: list[str]) -> tuple[float, float]:
    """Mean seconds of a step after the warm-up, and of the whole run."""
    folder = out / name
    if not (folder / "model").exists():
        chosen = [*SETTINGS, *settings, f"run.storage={out}"]
        words = [word for setting in chosen for word in ("--set", setting)]
        local = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db"}
        command = [RAYSFT, "train", "gpt2-tiny-cpu", "--name", name, *words]
        subprocess.run(command, check=True, cwd=out, env=local | os.environ)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step_time_s"] for line in lines if "loss" in line and line["step"] > WARMUP]
    summary = json.loads((folder / "summary.json").read_text())
    return sum(steps) / len(steps), summary["wall_s"]


if __name__ == "__main__":
    main()
