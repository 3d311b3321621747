"""What must work on a GPU, however fast: a proof, a killed worker, adapters, PPO and the chain."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import Lab

HERE = Path(__file__).parent


def doctor(lab: Lab) -> None:
    lab.keep("doctor", **lab.raysft("doctor", *lab.settings(), limit_s=90))


def prove(lab: Lab) -> None:
    """It trains a model of its own: of the settings it takes where and with what."""
    if lab.tiny:  # it has tests of its own, as the chain has
        return
    settings = ("scaling.workers=1", "scaling.gpus_per_worker=1",
                f"run.storage={lab.runs}")  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    lab.keep("prove", **lab.raysft("doctor", "--prove", *words, limit_s=200))


def kill(lab: Lab) -> None:
    """A worker is killed after a checkpoint; the run goes on, and its model answers."""
    import psutil

    settings = lab.settings(
        f"run.max_steps={40 if lab.tiny else 120}", "checkpoint.every_steps=10",
        "eval.max_records=32", "batch.global_batch_size=16",
    )  # fmt: skip
    preset = "gpt2-large" if lab.tiny else "gpt2"
    command = [str(Path(sys.executable).parent / "raysft"), "train", preset, "--name", "kill"]
    with (lab.out / "log.txt").open("a") as log:
        run = subprocess.Popen([*command, *settings], stderr=log, stdout=log)
    folder, until = lab.runs / "kill", time.monotonic() + 120 * lab.patience
    while run.poll() is None and time.monotonic() < until:
        if list(folder.glob("checkpoints/checkpoint_*/manifest_0.json")):
            job = psutil.Process(json.loads((folder / "summary.json").read_text())["pid"])
            workers = [p for p in job.children(recursive=True) if is_worker(p)]
            if workers:
                workers[0].kill()
                break
        time.sleep(0.2)
    with suppress(subprocess.TimeoutExpired):
        run.wait(timeout=150 * lab.patience)
    run.kill()
    summary = json.loads((folder / "summary.json").read_text())
    code, answer = lab.call([command[0], "generate", str(folder / "model"), "Write a loop."], 60)
    lab.keep("kill", **summary | {"exit_code": run.returncode, "generate": code, "answer": answer})


def is_worker(process: Any) -> bool:
    import psutil

    with suppress(psutil.Error):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def adapter(lab: Lab) -> None:
    """LoRA of the model that `kill` left, merged into what is exported."""
    settings = lab.tuned(
        "adapter.rank=16", "optim.lr=1e-3", "run.max_steps=10", "eval.max_records=32",
        "batch.global_batch_size=64", "checkpoint.every_steps=5",
    )  # fmt: skip
    summary = lab.raysft(
        "train", "gpt2-large" if lab.tiny else "gpt2", "--name", "adapter", *settings, limit_s=90
    )
    lab.keep("adapter", **summary)


REWARD = """
def length(prompt: str, answer: str, reference: str) -> float:
    return -abs(len(answer) - 200) / 200
"""


def ppo(lab: Lab) -> None:
    """Some iterations on that model's answers, and where the last one's time went."""
    (lab.out / "reward.py").write_text(REWARD)
    prompts, group = (4, 2) if lab.tiny else (64, 8)
    settings = lab.tuned(
        f"ppo.reward={lab.out / 'reward.py'}:length", f"ppo.group={group}",
        f"ppo.prompts_at_once={prompts}", f"batch.global_batch_size={prompts * group}",
        f"ppo.max_new_tokens={8 if lab.tiny else 128}", "batch.seq_len=512", "optim.lr=1e-5",
        "run.max_steps=4", "eval.max_records=8", "checkpoint.every_steps=0",
    )  # fmt: skip
    words = ("ppo", "gpt2-ppo", "--name", "ppo", *settings)
    summary = lab.raysft(*words, limit_s=150)
    with suppress(OSError, ValueError, IndexError):
        lines = (lab.runs / "ppo/metrics.jsonl").read_text().splitlines()
        summary["last_step"] = json.loads(lines[-1])
    lab.keep("ppo", **summary)


def chain(lab: Lab) -> None:
    """Demonstrations, pairs, a reward model and PPO in turns, at the size of the demo."""
    if lab.tiny:
        return
    careless = lab.runs / "careless"
    lab.call([sys.executable, str(HERE.parent / "careless.py"), str(careless)], 60)
    settings = (
        f"model.tokenizer={careless / 'tokenizer'}", f"data.path={careless / 'careless.jsonl'}",
        "scaling.gpus_per_worker=1", f"run.storage={lab.runs}", "run.max_steps=300",
    )  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    lab.keep("chain", **lab.raysft("align", "align-demo", "--name", "chain", *words, limit_s=240))
