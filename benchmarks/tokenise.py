"""How fast, and in how much memory, `raysft data stats` reads and tokenises a large set.

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

WORDS = Path(__file__).read_text().split() + [f"w{number}" for number in range(2000)]


def write_records(path: Path, count: int) -> None:
    """About 40 words of prompt and 70 of response, no two alike."""
    source = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt, response = (
                " ".join(source.choices(WORDS, k=source.randint(low, high)))
                for low, high in ((10, 60), (10, 130))
            )
            record = {"instruction": f"{number}: {prompt}", "input": "", "output": response}
            file.write(json.dumps(record) + "\n")


def measure(data: Path, tokenizer: str, cache: Path) -> tuple[float, int, dict[str, object]]:
    command = [
        *(str(Path(sys.executable).parent / "raysft"), "data", "stats", "gpt2-tiny-cpu", "--json"),
        *("--set", f"data.path={data}", "--set", f"model.tokenizer={tokenizer}"),
    ]
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
    print("| records | file MB | tokens | first s | records/s | again, cached s | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "records.jsonl"
            write_records(data, count)
            seconds, peak, facts = measure(data, arguments.tokenizer, Path(folder))
            again, _, _ = measure(data, arguments.tokenizer, Path(folder))
            print(
                f"| {count:,} | {data.stat().st_size / 1e6:.0f} | {facts['tokens']:,} | "
                f"{seconds:.1f} | {count / seconds:,.0f} | {again:.1f} | {peak / 2**30:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
