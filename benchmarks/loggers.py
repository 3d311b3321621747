"""What loggers cost a run: TensorBoard, Weights & Biases and MLflow together, against none.

    python benchmarks/loggers.py --out DIR [--rounds 3] [--every 25]
    python benchmarks/loggers.py --out DIR --lines 200 [--pause 0.1]

The first runs the same steps with and without them, in turns, on two workers that leave no core
idle. What they cost is less than such times differ by themselves, so the second counts CPU time, of
a line of metrics, in this process and in those that the libraries start: what a step could lose by
it at most, where no core is idle. MLFLOW_TRACKING_URI may name a server; else MLflow writes a file
in DIR. Weights & Biases writes files, too. Runs that DIR has are not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
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
LINE = {
    "loss": 1.2552, "lr": 5e-4, "grad_norm": 0.82, "clipped_steps": 12, "skipped_steps": 0,
    "spikes_skipped": 0, "tokens_per_second": 17338.0, "supervised_tokens_per_second": 9277.0,
    "step_time_s": 0.08, "peak_memory_gib": 0.63, "time_left_s": 5.0,
}  # fmt: skip
SETTLING = 20  # lines that are not counted: services open, modules are imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=25, help="steps between lines of metrics")
    parser.add_argument("--lines", type=int, help="count the CPU time of so many")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between them")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out}/mlflow.db")
    if options.lines:
        none, every_one = (
            cpu_of_line(out / name, settings, options.lines, options.pause)
            for name, settings in (("cpu-none", WITHOUT), ("cpu-all", WITH))
        )
        print(f"CPU time of a line: {1e3 * none:.2f} ms without, {1e3 * every_one:.2f} ms with all")
        return
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
        command = [RAYSFT, "train", "gpt2-tiny-cpu", "--name", name, *words]
        subprocess.run(command, check=True, cwd=out)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step_time_s"] for line in lines if "loss" in line and line["step"] > WARMUP]
    summary = json.loads((folder / "summary.json").read_text())
    return sum(steps) / len(steps), summary["wall_s"]


def cpu_of_line(folder: Path, settings: list[str], lines: int, pause_s: float) -> float:
    """Seconds of all cores."""
    from raysft.config.load import load_config
    from raysft.runs import events, provenance, rundir
    from raysft.runs.loggers import loggers
    from raysft.runs.trackers import Trackers, known

    config = load_config("gpt2-tiny-cpu", settings)
    stamp = provenance.submission()
    spec = {"verb": "train", "config": config.model_dump(mode="json"), "stamp": stamp}
    rundir.write_run(folder, spec)
    files = loggers(config, folder)

    def to_files(event: events.Event) -> None:
        for log in files:
            log(event)

    trackers = Trackers(known(config, folder), folder, to_files)
    trackers(events.Plan(lines))
    trackers(events.Started(0))
    for step in range(1, SETTLING + lines + 1):
        trackers(events.Metrics(step, LINE))
        if step == SETTLING:
            time.sleep(15)  # until all of them have it
            before = cpu_s()
        time.sleep(pause_s)
    time.sleep(5)
    used = cpu_s() - before
    trackers.end({"status": "done"})
    return used / lines


def cpu_s() -> float:
    """CPU seconds of this process and of all below it."""
    import psutil

    this = psutil.Process()
    times = [one.cpu_times() for one in (this, *this.children(recursive=True))]
    return sum(time.user + time.system for time in times)


if __name__ == "__main__":
    main()
