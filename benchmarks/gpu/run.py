"""raysft on one GPU, in nine minutes: does it work, how fast is it, and where does the time go.

    python benchmarks/gpu/run.py --tokenizer FOLDER --data RECORDS.json --out DIR [STEP]...

RECORDS.json: a list of records with instruction, input and response. Without a STEP all of them, in
the order of their worth: each has a time limit and writes as it goes, and none begins that could
not end within --minutes. Leaves DIR/results.jsonl, report.md, kernels-*.txt and log.txt. --tiny: a
small shape, to try the script itself where there is no GPU.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from report import markdown

HERE = Path(__file__).parent
PACKAGES = ("raysft", "torch", "transformers", "deepspeed", "ray", "trl", "flash-attn", "triton")
T = 1024
LONG = ("config", "data", "stamp", "scaling", "parameters", "flops_per_token", "restarts")
# ZeRO stage, recomputing, thousands of tokens in a micro-batch, and what else differs.
CASES: list[dict[str, Any]] = [
    {"stage": 1, "recomputes": False, "tokens": 16},
    {"stage": 3, "recomputes": False, "tokens": 16},
    {"stage": 3, "recomputes": False, "tokens": 16, "leaf": False},
    {"stage": 1, "recomputes": False, "tokens": 16, "compile": True},
    {"stage": 1, "recomputes": False, "tokens": 4},
    {"stage": 1, "recomputes": True, "tokens": 16},
    {"stage": 3, "recomputes": True, "tokens": 4, "leaf": False},  # as the preset was before
]


@dataclass
class Lab:
    tokenizer: Path
    data: Path
    out: Path
    tiny: bool
    runs: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def keep(self, check: str, **facts: Any) -> None:
        line = {"check": check, **{key: value for key, value in facts.items() if key not in LONG}}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def say(self, words: str) -> None:
        print(f"=== {time.monotonic() - self.started:4.0f} s  {words}", flush=True)

    def call(self, command: list[str], limit_s: float) -> tuple[int | None, str]:
        """Exit code, None where it took too long, and standard output. The rest goes to log.txt.

        --tiny is about the script and not about time: a busy CPU may compile for minutes.
        """
        limit_s *= 4 if self.tiny else 1
        with (self.out / "log.txt").open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit_s
                )
            except subprocess.TimeoutExpired:
                return None, ""
            log.write(done.stdout[-20_000:])
        return done.returncode, done.stdout

    def raysft(self, *words: str, limit_s: float) -> dict[str, Any]:
        """The summary of a command with --json, and its exit code."""
        command = [str(Path(sys.executable).parent / "raysft"), *words, "--json"]
        code, output = self.call(command, limit_s)
        summary: dict[str, Any] = {}
        with suppress(ValueError, IndexError):
            summary = json.loads(output.splitlines()[-1])
        return summary | {"exit_code": code}

    def settings(self, *more: str) -> list[str]:
        """GPT-2 Large from random weights on real records, on one GPU."""
        chosen = [
            "model.init=scratch", "model.path=none", f"model.tokenizer={self.tokenizer}",
            f"data.path={self.data}", "data.template=plain", f"batch.seq_len={T}",
            "scaling.workers=1", f"scaling.gpus_per_worker={0 if self.tiny else 1}",
            f"scaling.cpus_per_worker={1 if self.tiny else min(8, os.cpu_count() or 1)}",
            f"run.storage={self.runs}", "run.samples=0", "eval.exact_match_records=0",
            "eval.every_steps=0", "log.every_steps=1", "log.tensorboard=false",
            *(["model.shape={n_layer=2, n_embd=64, n_head=2}"] if self.tiny else []), *more,
        ]  # fmt: skip
        return [word for setting in chosen for word in ("--set", setting)]


def env(lab: Lab) -> None:
    import torch

    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    facts: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {"gpu": card.name, "memory_gib": card.total_memory / 2**30}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    lab.keep("env", versions=versions, **facts)


def doctor(lab: Lab) -> None:
    lab.keep("doctor", **lab.raysft("doctor", *lab.settings(), limit_s=90))


def train(lab: Lab) -> None:
    """With what "auto" chooses, with the estimate beside it."""
    train_at(lab, "train")


def zero3(lab: Lab) -> None:
    """Left out of --tiny, as the proof is: others show on a CPU that they work."""
    if not lab.tiny:
        train_at(lab, "zero3", "engine.zero_stage=3")


def train_at(lab: Lab, check: str, *more: str) -> None:
    """Some steps through the command line, and when the first of them was done."""
    records, steps = (8, 3) if lab.tiny else (256, 12)
    settings = lab.settings(
        f"batch.global_batch_size={records}", f"run.max_steps={steps}", "eval.max_records=64",
        "checkpoint.every_steps=0", *more,
    )  # fmt: skip
    estimate = lab.raysft("estimate", "gpt2-large", *settings, *memory(), limit_s=60)
    predicted = next(
        (
            row["total"]
            for row in estimate.get("memory_gib", ())
            if row["choice"] == estimate["chosen"]
        ),
        None,
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(
            seconds_to_first_step, lab.runs / check / "metrics.jsonl", over := Event()
        )
        summary = lab.raysft("train", "gpt2-large", "--name", check, *settings, limit_s=150)
        over.set()
    facts = {"predicted_memory_gib": predicted, "first_step_s": first.result()}
    lab.keep(check, **summary, **facts, words=estimate.get("auto"))
    shutil.rmtree(lab.runs / check / "model", ignore_errors=True)


def memory() -> list[str]:
    """Of the card that is there, for estimate."""
    import torch

    if not torch.cuda.is_available():
        return []
    return ["--memory-gib", str(torch.cuda.get_device_properties(0).total_memory / 2**30)]


def seconds_to_first_step(metrics: Path, over: Event) -> float | None:
    """Until the file has a line beyond that of the untrained model; over: the run is."""
    started = time.monotonic()
    while not over.wait(0.1):
        with suppress(OSError):
            if metrics.read_text().count("\n") > 1:
                return time.monotonic() - started
    return None


def compare(lab: Lab) -> None:
    """The peers and a bare loop on the same records, in one run."""
    contenders = ["bare"]
    if not lab.tiny:
        contenders += ["raysft-zero1", "raysft-zero3", "bare-compiled", "raysft-zero1-compiled"]
        contenders += ["trl-packed", "hf-deepspeed-zero3"] if is_there("trl") else []
    out = lab.runs / "compare"
    command = [
        sys.executable, str(HERE.parent / "compare/run.py"), "--tokenizer", str(lab.tokenizer),
        "--data", str(lab.data), "--out", str(out), "--rounds", "1",
        "--only", ",".join(contenders), "--shape", "tiny" if lab.tiny else "gpt2-large",
        "--records-per-step", "8" if lab.tiny else "128", "--steps", "3" if lab.tiny else "10",
        "--pack-tokens", str(T if lab.tiny else 16 * T),
    ]  # fmt: skip
    code, _ = lab.call(command, 300)
    table = {}
    with suppress(OSError, ValueError):
        table = json.loads((out / "results.json").read_text())["table"]
    lab.keep("compare", exit_code=code, table=table)


def is_there(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def prove(lab: Lab) -> None:
    if not lab.tiny:
        lab.keep("prove", **lab.raysft("doctor", "--prove", *lab.settings(), limit_s=200))


def kill(lab: Lab) -> None:
    """A worker is killed after a checkpoint; the run goes on, and its model answers."""
    import psutil

    settings = lab.settings(
        "run.max_steps=40", "checkpoint.every_steps=10", "eval.max_records=32",
        "batch.global_batch_size=16",
    )  # fmt: skip
    preset = "gpt2-large" if lab.tiny else "gpt2"
    command = [str(Path(sys.executable).parent / "raysft"), "train", preset, "--name", "kill"]
    with (lab.out / "log.txt").open("a") as log:
        run = subprocess.Popen([*command, *settings], stderr=log, stdout=log)
    folder, until = lab.runs / "kill", time.monotonic() + 120
    while run.poll() is None and time.monotonic() < until:
        if list(folder.glob("checkpoints/checkpoint_*/manifest_0.json")):
            job = psutil.Process(json.loads((folder / "summary.json").read_text())["pid"])
            workers = [p for p in job.children(recursive=True) if is_worker(p)]
            if workers:
                workers[0].kill()
                break
        time.sleep(0.2)
    with suppress(subprocess.TimeoutExpired):
        run.wait(timeout=150)
    run.kill()
    summary = json.loads((folder / "summary.json").read_text())
    code, answer = lab.call([command[0], "generate", str(folder / "model"), "Write a loop."], 60)
    lab.keep("kill", **summary | {"exit_code": run.returncode, "generate": code, "answer": answer})


def is_worker(process: Any) -> bool:
    import psutil

    with suppress(psutil.Error):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def bench(lab: Lab) -> None:
    lengths = "[64]" if lab.tiny else "[512, 1024]"
    settings = lab.settings(
        "bench.synthetic=true", f"bench.seq_lens={lengths}", "engine.zero_stage=3",
        f"bench.steps={1 if lab.tiny else 5}", f"bench.warmup_steps={1 if lab.tiny else 3}",
        f"batch.global_batch_size={2 if lab.tiny else 32}",
    )  # fmt: skip
    summary = lab.raysft(
        "bench", "seq-len", "gpt2-large", "--name", "bench", *settings, limit_s=200
    )
    with suppress(OSError):
        summary["report"] = (lab.runs / "bench/report.md").read_text()
    lab.keep("bench", **summary)


def parts(lab: Lab) -> None:
    command = [sys.executable, str(HERE / "parts.py"), str(lab.results)]
    lab.call([*command, *(["--tiny"] if lab.tiny else [])], 120)


def steps(lab: Lab) -> None:
    for case in CASES[:2] if lab.tiny else CASES:
        step(lab, case)


def profile(lab: Lab) -> None:
    for stage in (1,) if lab.tiny else (1, 3):
        file = f"kernels-zero{stage}.txt"
        step(lab, {"stage": stage, "recomputes": False, "tokens": 16, "profile": file})


def step(lab: Lab, case: dict[str, Any]) -> None:
    case = case | {"tokens": 2} if lab.tiny else case
    command = [sys.executable, str(HERE / "steps.py"), str(lab.results), json.dumps(case)]
    lab.call([*command, *(["--tiny"] if lab.tiny else [])], 90)


# In the order of their worth, with the seconds that each takes at most on an H100 (a guess until
# one was measured).
STEPS: dict[str, tuple[Callable[[Lab], None], float]] = {
    "env": (env, 10),
    "doctor": (doctor, 25),
    "train": (train, 60),
    "zero3": (zero3, 50),
    "compare": (compare, 200),
    "prove": (prove, 100),
    "kill": (kill, 70),
    "parts": (parts, 40),
    "steps": (steps, 120),
    "profile": (profile, 40),
    "bench": (bench, 75),
}


def chosen(words: list[str]) -> Iterator[tuple[str, Callable[[Lab], None], float]]:
    for name, (work, seconds) in STEPS.items():
        if not words or name in words:
            yield name, work, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = out / "runs"
    lab = Lab(arguments.tokenizer.resolve(), arguments.data.resolve(), out, arguments.tiny, runs)
    for name, work, seconds in chosen(arguments.steps):
        if time.monotonic() - lab.started + seconds > 60 * arguments.minutes:
            lab.say(f"{name}: left out, for it may take {seconds:.0f} s")
            lab.keep(name, left_out=True)
            continue
        lab.say(name)
        begun = time.monotonic()
        try:
            work(lab)
        except Exception as error:  # the others are still worth having
            lab.keep(name, failed=f"{type(error).__name__}: {error}"[:300])
        lab.keep("seconds", step=name, seconds=time.monotonic() - begun)
    shutil.rmtree(runs, ignore_errors=True)
    text = markdown(lab.results, " ".join(["python", *sys.argv]))
    (out / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
