"""Adapters in a model's linear layers, made by peft; all other weights are frozen.

They are put into the model that is there, which stays what transformers made: no other class is
wrapped around it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysft.config.schema import Config
from raysft.errors import UserError

NAME = "default"  # peft's, of the one adapter that a model has


def add_adapter(config: Config, model: Any) -> None:
    """Freeze the model and give it the adapter of the config, drawn by the seed alone: it computes
    what it computed before. Under ZeRO-3 while transformers knows of it. Every rank must call it.

    Raises UserError where a target is none of the model's layers, or not one that can be adapted.
    """
    from peft import LoraConfig

    adapter = config.adapter
    targets: str | list[str] = "all-linear"
    if adapter.target_modules != "auto":
        targets = require_targets(model, adapter.target_modules)
    inject(
        model,
        LoraConfig(
            r=adapter.rank, lora_alpha=adapter.scale_alpha, lora_dropout=adapter.dropout,
            target_modules=targets, use_dora=adapter.variant == "dora",
            use_rslora=adapter.variant == "rslora", fan_in_fan_out=has_conv1d(model),
            task_type="CAUSAL_LM", base_model_name_or_path=whereabouts(str(config.model.path)),
        ),
        config.run.seed,
    )  # fmt: skip
    if config.model.recomputes:
        # Re-entrant checkpointing gives no gradient where no input of a block asks for one.
        model.enable_input_require_grads()


def inject(model: Any, peft_config: Any, seed: int = 0) -> None:
    """Of numbers that are drawn by the seed, whatever was drawn before; nor does what comes after
    depend on it."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), without_future_warnings():
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(peft_config, model, NAME)


@contextmanager
def without_future_warnings() -> Iterator[None]:
    """peft 0.21.2 asks for an attribute that transformers 5.23 is about to rename."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def peft_config_of(model: Any) -> Any:
    """Of a Hugging Face model or an engine with one; None where it has no adapter."""
    found = getattr(getattr(model, "module", model), "peft_config", None)
    return found[NAME] if found else None


def whereabouts(path: str) -> str:
    """Of a folder, wherever it is loaded from; a hub id is itself."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def has_conv1d(model: nn.Module) -> bool:
    """GPT-2's linear layers, whose weights are [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def require_targets(model: Any, targets: Sequence[str]) -> list[str]:
    """The same. Raises UserError where one of them is no linear layer within the model."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"adapter.target_modules: {target!r} is no linear layer of "
                f"{type(model).__name__} below its head; it has {', '.join(known)}"
            )
    return list(targets)
