"""How fast, and in how much memory, `raysft data stats` reads and tokenises a large set, and how
soon `raysft data preview` shows its first records.

    python benchmarks/tokenise.py TOKENIZER_FOLDER --records 50000 200000

Writes synthetic instruction records, audits them with an empty cache, and prints one row for each
size: records a second, and the largest memory (proportional set size, so that shared pages count
once) of the command's whole process tree, sampled ten times a second.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from compare.common import tree_memory

RAYSFT = str(Path(sys.executable).parent / "raysft")
WORDS = Path(__file__).read_text().split() + [f"w{number}" for number in range(2000)]


def write_records(path: Path, count: int) -> None:
    """About 40 words of prompt and 70 of response, no two alike: of 20,000 texts, numbered."""
    source = random.Random(0)
    texts = [
        tuple(
            json.dumps(" ".join(source.choices(WORDS, k=source.randint(low, high))))
            for low, high in ((10, 60), (10, 130))
        )
        for _ in range(min(count, 20_000))
    ]
    with path.open("w") as file:
        for number in range(count):
            prompt, response = texts[number % len(texts)]
            record = f'"instruction": "{number}: {prompt[1:]}, "input": "", "output": {response}'
            file.write(f"{{{record}}}\n")


def of_set(data: Path, tokenizer: str) -> list[str]:
    sets = ("--set", f"data.path={data}", "--set", f"model.tokenizer={tokenizer}")
    return ["gpt2-tiny-cpu", *sets]


def preview_s(data: Path, tokenizer: str) -> float:
    started = time.monotonic()
    command = [RAYSFT, "data", "preview", *of_set(data, tokenizer)]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def measure(data: Path, tokenizer: str, cache: Path) -> tuple[float, int, dict[str, object]]:
    command = [RAYSFT, "data", "stats", *of_set(data, tokenizer), "--json"]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, tree_memory(watched))
        time.sleep(0.1)
    seconds = time.monotonic() - started
    assert process.stdout is not None
    return seconds, peak, json.loads(process.stdout.read().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("--records", type=int, nargs="+", default=[50_000, 200_000])
    arguments = parser.parse_args()
    headings = "records | file MB | tokens | preview s | first s | records/s | again, cached s"
    print(f"| {headings} | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for count in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "records.jsonl"
            write_records(data, count)
            shown = preview_s(data, arguments.tokenizer)
            seconds, peak, facts = measure(data, arguments.tokenizer, Path(folder))
            again, _, _ = measure(data, arguments.tokenizer, Path(folder))
            print(
                f"| {count:,} | {data.stat().st_size / 1e6:.0f} | {facts['tokens']:,} | "
                f"{shown:.1f} | {seconds:.1f} | {count / seconds:,.0f} | {again:.1f} | "
                f"{peak / 2**30:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
