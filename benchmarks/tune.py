"""What early stopping saves: the same trials under fifo and under asha, one search after the other.

    python benchmarks/tune.py --out DIR [--trials 16]

The space holds settings that diverge: rates up to 1, without clipping. Searches that DIR has the
results of are not run again. Then best.toml of the first search is trained once more.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from raysft.studies.tune.trials import Trial, best_of, read_results

SPACE = [
    "tune.space.optim.lr={loguniform=[1e-4,1.0]}",
    "tune.space.optim.max_grad_norm={choice=[0.0]}",
]
SCHEDULERS = ("fifo", "asha")
RAYSFT = Path(sys.executable).parent / "raysft"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    found = {name: search(options.out, name, options.trials) for name in SCHEDULERS}
    print("| scheduler | done | stopped | diverged | steps | best trial | held-out loss |")
    print("|---|---|---|---|---|---|---|")
    for name, trials in found.items():
        print(row(name, trials))
    fifo, asha = found.values()
    first, second = best_of(fifo), best_of(asha)
    assert first is not None
    assert second is not None
    print(f"\nsteps, asha to fifo: {steps(asha) / steps(fifo):.2f}")
    print(f"best held-out loss, asha to fifo: {loss(second) / loss(first):.4f}")
    again = train(options.out)
    print(
        f"best.toml trained again: {again:.6f}, {again / loss(first) - 1:+.3%} of {loss(first):.6f}"
    )


def search(out: Path, name: str, trials: int) -> list[Trial]:
    if not (out / name / "best.toml").exists():
        settings = [*SPACE, f"tune.scheduler={name}", f"tune.num_trials={trials}"]
        words = [
            word for setting in [*settings, f"run.storage={out}"] for word in ("--set", setting)
        ]
        subprocess.run([RAYSFT, "tune", "tune-stability", "--name", name, *words], check=True)
    return read_results(out / name)[2]


def train(out: Path) -> float:
    if not (out / "best" / "summary.json").exists():
        config = out / "fifo" / "best.toml"
        words = ["--name", "best", "--set", f"run.storage={out}"]
        subprocess.run([RAYSFT, "train", config, *words], check=True)
    return float(json.loads((out / "best" / "summary.json").read_text())["eval_loss_last"])


def steps(trials: list[Trial]) -> int:
    return sum(trial.step for trial in trials)


def loss(trial: Trial) -> float:
    assert trial.eval_loss is not None
    return trial.eval_loss


def row(name: str, trials: list[Trial]) -> str:
    counts = [sum(t.status == status for t in trials) for status in ("done", "stopped", "diverged")]
    best: Any = best_of(trials)
    cells = [name, *counts, f"{steps(trials):,}", best.number, f"{loss(best):.4f}"]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
