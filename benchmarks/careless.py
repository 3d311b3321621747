"""The demo's records as a careless person writes them: half of the answers lack their last item.

    python benchmarks/careless.py FOLDER

What is learnt from them is where `make demo-align` begins, and the figures of docs/preferences.md
and docs/ppo.md: a model that often stops too early, and knows what would have come.
"""

import json
import random
import sys
from pathlib import Path

from raysft.data import demo
from raysft.data.read import DEMO_RECORDS

SEED, SHARE = 0, 0.5


def shortened(answer: str) -> str:
    """Without its last item, where it has several: after a comma, on a line, or a word."""
    for border in (", ", "\n", " "):
        if border in answer:
            return answer.rpartition(border)[0]
    return answer


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = demo.generate(DEMO_RECORDS, SEED)
    demo.train_tokenizer(records).save_pretrained(folder / "tokenizer")
    source = random.Random(SEED)
    with (folder / "careless.jsonl").open("w") as file:
        for record in records:
            if source.random() < SHARE:
                record = record | {"output": shortened(record["output"])}
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
