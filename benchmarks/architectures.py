"""The demo on architectures that are not GPT-2's, of about half a million parameters each.

    python benchmarks/architectures.py [NAME...] [--storage FOLDER]

For each, `raysft train gpt2-tiny-cpu` with its config: how records were laid out, the held-out loss
that the run claims, that of the exported folder in plain transformers, each record alone, and the
share of right answers. Prints a table in Markdown; exits with 1 where a loss is off by more than
1e-3 or fewer than 0.8 of the answers are right.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LARGEST_DIFFERENCE, LEAST_MATCH = 1e-3, 0.8  # nats a token; share of the held-out answers
SIZES = {"hidden_size": 128, "intermediate_size": 208, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "initializer_range": 0.06}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 112, "word_embed_proj_dim": 112, "ffn_dim": 448, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 512, "init_std": 0.06},
    # Heads enough for its ALiBi to look both near and far: with 4 it came to 0.775.
    "bloom": {"hidden_size": 112, "n_layer": 3, "n_head": 8, "initializer_range": 0.06},
    "codegen": {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": 512, "rotary_dim": 16,
                "n_positions": 512, "n_ctx": 512, "initializer_range": 0.06},
    "stablelm": SIZES,
    "mistral": SIZES | {"sliding_window": 32},
    "gpt_oss": SIZES | {"intermediate_size": 96, "head_dim": 32, "num_local_experts": 2,
                        "num_experts_per_tok": 2, "sliding_window": 32, "rope_scaling": None},
    "mamba": {"hidden_size": 128, "state_size": 16, "num_hidden_layers": 3,
              "initializer_range": 0.06},
    "falcon_h1": SIZES | {"num_hidden_layers": 2, "mamba_d_ssm": 128, "mamba_n_heads": 4,
                          "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16,
                          "lm_head_multiplier": 0.5},
    "gemma2": SIZES | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32,
                       "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}  # fmt: skip


def train(name: str, storage: Path) -> tuple[Path, str]:
    """The run's folder, and what the command said."""
    from transformers import CONFIG_MAPPING

    model = storage / "configs" / name
    # A width of the vocabulary is for the run to say: it takes that of the demo's tokenizer.
    CONFIG_MAPPING[name](**CONFIGS[name], pad_token_id=None).save_pretrained(model)
    settings = [f"run.storage={storage}", "model.init=scratch", f"model.path={model}",
                "model.shape=none"]  # fmt: skip
    command = [sys.executable, "-m", "raysft.cli.app", "train", "gpt2-tiny-cpu", "--name", name]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    return storage / name, done.stdout + done.stderr


def loss_alone(run_dir: Path) -> tuple[float, int]:
    """Of the exported folder over the held-out response tokens, by transformers, nats a token; and
    its parameters."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    from raysft.config.load import validate
    from raysft.data.dataset import prepare
    from raysft.model.load import load_template

    config = validate(json.loads((run_dir / "run.json").read_text())["config"], "run.json")
    heldout = prepare(config, load_template(config)).heldout
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model", dtype=torch.float32).eval()
    total = count = 0.0
    for index in range(len(heldout)):
        ids = torch.from_numpy(heldout.tokens(index).astype(np.int64))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        nll = F.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
        trained = torch.from_numpy(heldout.mask(index)[1:])
        total, count = total + float(nll[trained].sum()), count + int(trained.sum())
    return total / count, sum(parameter.numel() for parameter in model.parameters())


def row(name: str, storage: Path) -> bool:
    """Print it. Whether the run kept its word, or said before training that it cannot."""
    run_dir, said = train(name, storage)
    summary_file = run_dir / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    if summary.get("status") != "done":
        refused = "raysft cannot train it" in said
        print(f"| {name} | {'refused' if refused else said[-300:]} | | | | |", flush=True)
        return refused
    layout = "padded" if "padded instead" in said else "packed"
    claimed, match = summary["eval_loss_last"], summary["exact_match"]
    alone, parameters = loss_alone(run_dir)
    print(
        f"| {name} | {parameters:,} | {layout} | {claimed:.5f} | {alone:.5f} | {match:.3f} |",
        flush=True,
    )
    return abs(claimed - alone) <= LARGEST_DIFFERENCE and match > LEAST_MATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    parser.add_argument("--storage", type=Path)
    options = parser.parse_args()
    storage = options.storage or Path(tempfile.mkdtemp(prefix="architectures-"))
    columns = ("type", "parameters", "records", "held-out loss", "in transformers", "exact match")
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    kept = [row(name, storage) for name in options.names]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
