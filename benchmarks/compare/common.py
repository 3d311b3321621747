"""What every contender shares: the records, their order, and how a result is measured.

Nothing here is imported from raysft: the peers stand on their own feet.
"""

import argparse
import json
import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVAL_RECORDS = 32
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
LORA_RATE = 10  # times the learning rate of all weights


@dataclass(frozen=True)
class Task:
    model: Path  # Hugging Face folder: the same weights for all
    data: Path  # JSON list with `instruction`, `input`, `response`
    seq_len: int
    records_per_step: int
    steps: int
    learning_rate: float
    pack_tokens: int  # most tokens of a forward pass, where records are packed
    output: Path  # the trained model goes here


def read_task(description: str) -> tuple[Task, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("task", type=Path, help="JSON file written by run.py")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--lora", action="store_true")
    arguments = parser.parse_args()
    raw = json.loads(arguments.task.read_text())
    paths = {key: Path(raw[key]) for key in ("model", "data", "output")}
    return Task(**raw | paths), arguments


def split(data: Path, count: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`count` training records in the order in which all contenders see them, and the held-out."""
    records = json.loads(data.read_text())
    random.Random(0).shuffle(records)
    return records[EVAL_RECORDS : EVAL_RECORDS + count], records[:EVAL_RECORDS]


def prompt_of(record: dict[str, str]) -> str:
    given = f"\n{record['input']}" if record["input"].strip() else ""
    return f"{record['instruction']}{given}\n"


def encode(tokenizer: Any, record: dict[str, str], seq_len: int) -> tuple[list[int], int]:
    """Token ids, and how many of them are prompt."""
    prompt = tokenizer(prompt_of(record))["input_ids"]
    response = [*tokenizer(record["response"])["input_ids"], tokenizer.eos_token_id]
    return (prompt + response)[:seq_len], len(prompt)


def count_tokens(task: Task, tokenizer: Any) -> tuple[int, int]:
    """Tokens of all training records and how many are supervised: the same for every contender."""
    train, _ = split(task.data, task.records_per_step * task.steps)
    encoded = [encode(tokenizer, record, task.seq_len) for record in train]
    return sum(len(ids) for ids, _ in encoded), sum(len(ids) - prompt for ids, prompt in encoded)


def heldout_loss(folder: Path, task: Task) -> float:
    """Mean NLL of the held-out responses by transformers in fp32, a record at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    nll, count = 0.0, 0
    for record in split(task.data, 0)[1]:
        ids, prompt = encode(tokenizer, record, task.seq_len)
        labels = torch.tensor([[-100] * prompt + ids[prompt:]])
        with torch.no_grad():
            loss = model(torch.tensor([ids]).to(device), labels=labels.to(device)).loss
        nll += loss.item() * (len(ids) - prompt)
        count += len(ids) - prompt
    return nll / count


def tree_memory(process: Any) -> int:
    """Bytes of a psutil process and all its children, shared pages counted once."""
    import psutil

    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it ended while we looked
            continue
    return total


def step_clock() -> Any:
    """A callback of Hugging Face trainers that keeps the seconds of each step in `times`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter() - self.started)

    return Clock()


def report(step_times_s: list[float], step_tokens: list[int]) -> None:
    """The last line of a contender's output. step_tokens: of each step, without padding.

    Memory is that of the GPU where there is one.
    """
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    result = {"step_times_s": step_times_s, "step_tokens": step_tokens, "peak_memory_gib": peak}
    print(json.dumps(result))
