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
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from lab import Lab, T
from report import markdown
from works import adapter, chain, doctor, kill, ppo, prove

HERE = Path(__file__).parent
PACKAGES = ("raysft", "torch", "transformers", "deepspeed", "ray", "trl", "flash-attn", "triton")
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
    "kill": (kill, 70),
    "adapter": (adapter, 45),
    "ppo": (ppo, 60),
    "prove": (prove, 100),
    "chain": (chain, 150),
    "parts": (parts, 40),
    "steps": (steps, 120),
    "profile": (profile, 40),
    "bench": (bench, 75),
}


def chosen(words: list[str]) -> Iterator[tuple[str, Callable[[Lab], None], float]]:
    for name in words or STEPS:
        yield name, *STEPS[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.steps) - set(STEPS)):
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
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
    lab.keep_logs()
    shutil.rmtree(runs, ignore_errors=True)
    text = markdown(lab.results, " ".join(["python", *sys.argv]))
    (out / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
