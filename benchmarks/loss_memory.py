"""What the loss adds to the peak memory of a training pass, by sequence length.

    python benchmarks/loss_memory.py

Forward and backward of GPT-2 small in bf16 over one record of T tokens, all supervised, each case
in a process of its own: without a loss (the hidden states summed: what activations and gradients
need), with ours, and with transformers' own.
"""

import json
import resource
import subprocess
import sys

LENGTHS = (512, 1024)
KINDS = ("no loss", "raysft", "transformers")


def peak_gib(kind: str, length: int) -> float:
    """Most memory this process ever had, after one pass."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from raysft.data.batch import make_batch
    from raysft.model import cpu_bf16
    from raysft.model.load import fuse_gelu
    from raysft.train.loss import supervised_nll

    cpu_bf16.choose("auto")
    torch.set_num_threads(2)
    config = GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    model = GPT2LMHeadModel(config).bfloat16().train()
    fuse_gelu(model)
    cpu_bf16.widen_linears(model)
    for parameter in model.parameters():  # so that gradients are there in every case
        parameter.grad = torch.zeros_like(parameter)
    ids = np.random.default_rng(0).integers(0, 50257, (1, length))
    scored = np.arange(length)[None] > 0
    if kind == "no loss":
        hidden = model.transformer(torch.from_numpy(ids), use_cache=False)[0]
        hidden.float().sum().backward()
    elif kind == "raysft":
        supervised_nll(model, make_batch(ids, scored, scored, {})).backward()
    else:
        tokens = torch.from_numpy(ids)
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(peak_gib(sys.argv[1], int(sys.argv[2]))))
        return
    print("| T | " + " | ".join(f"peak with {kind}, GiB" for kind in KINDS) + " |")
    print("|---|" + "---|" * len(KINDS))
    for length in LENGTHS:
        cells = []
        for kind in KINDS:
            command = [sys.executable, __file__, kind, str(length)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            cells.append(f"{json.loads(result.stdout.splitlines()[-1]):.3f}")
        print(f"| {length} | {' | '.join(cells)} |", flush=True)


main()
