"""Where a run of run.py keeps what it finds, and how it calls what it measures."""

import json
import os
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

T = 1024
LONG = ("config", "data", "stamp", "scaling", "parameters", "flops_per_token", "restarts")


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

    @property
    def patience(self) -> int:
        """--tiny is about the script and not about time: a busy CPU may compile for minutes."""
        return 4 if self.tiny else 1

    def keep(self, check: str, **facts: Any) -> None:
        line = {"check": check, **{key: value for key, value in facts.items() if key not in LONG}}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def say(self, words: str) -> None:
        print(f"=== {time.monotonic() - self.started:4.0f} s  {words}", flush=True)

    def call(self, command: list[str], limit_s: float) -> tuple[int | None, str]:
        """Exit code, None where it took too long, and standard output. The rest goes to log.txt."""
        limit_s *= self.patience
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

    def tuned(self, *more: str) -> list[str]:
        """GPT-2 small, as the step `kill` left it."""
        return self.settings("model.init=pretrained", f"model.path={self.runs / 'kill/model'}",
                             "model.tokenizer=none", *more)  # fmt: skip

    def keep_logs(self) -> None:
        """Of every run, before their folders go."""
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as archive:
            for file in sorted(self.runs.rglob("*")):
                if file.suffix in (".log", ".jsonl", ".md") and file.stat().st_size < 1 << 20:
                    archive.add(file, file.relative_to(self.runs))
