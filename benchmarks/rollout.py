"""Where the time of an iteration of `raysft ppo` goes, and how fast answers are drawn beside
`transformers.generate`, in turns.

    python benchmarks/rollout.py [--model gpt2|FOLDER] [--prompts 32] [--group 8] [--tokens 64]

Without a folder the model is a GPT-2 of random weights, whose answers never end: the case in which
leaving out rows that have ended saves nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raysft.model.sample import Sampling, keys_of, write

LENGTHS = (16, 48)  # tokens of a prompt, from and to
SHAPES = {"gpt2": {}, "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 1000}}


def load(name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config

    if name not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(**SHAPES[name]), dtype=dtype).eval()


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=16, help="prompts in one batch")
    parser.add_argument(
        "--ends", type=float, default=0.0, help="share of tokens that end an answer"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    model = load(asked.model, getattr(torch, asked.dtype))
    vocabulary = model.config.vocab_size
    source = np.random.default_rng(0)
    prompts = [
        source.integers(0, vocabulary, size=source.integers(*LENGTHS)).tolist()
        for _ in range(asked.prompts)
    ]
    # Of random weights every token is about as likely as any other.
    ends = list(range(max(1, round(asked.ends * vocabulary))))
    how = Sampling(asked.group, 1.0, asked.tokens)

    def batches() -> list[list[list[int]]]:
        return [prompts[i : i + asked.at_once] for i in range(0, len(prompts), asked.at_once)]

    def ours() -> int:
        found = 0
        for number, some in enumerate(batches()):
            keys = keys_of(0, number, np.arange(len(some))[:, None], np.arange(asked.group))
            found += sum(
                len(one.ids) for group in write(model, some, keys, how, ends) for one in group
            )
        return found

    @torch.inference_mode()
    def theirs() -> None:
        from raysft.model.generate import padded

        for some in batches():
            model.generate(
                **padded(model, some), max_new_tokens=asked.tokens, do_sample=True, top_k=0,
                num_return_sequences=asked.group, eos_token_id=ends, pad_token_id=0,
            )  # fmt: skip

    tokens = ours()  # and warm
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(asked.rounds)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    answers = asked.prompts * asked.group
    print(f"{answers} answers, {tokens:,} tokens, {asked.dtype}, {torch.get_num_threads()} threads")
    print(f"raysft        {mine:6.2f} s  {tokens / mine:6.0f} tokens/s")
    print(f"transformers  {other:6.2f} s  {tokens / other:6.0f} tokens/s")
    print(f"ratio, median of {asked.rounds} pairs: {ratio:.2f}")


if __name__ == "__main__":
    main()
