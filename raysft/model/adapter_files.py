"""An adapter as peft's files, beside the model that it belongs to or merged into its weights."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raysft.model.adapter import NAME, inject, peft_config_of, without_future_warnings
from raysft.model.files import base_of
from raysft.model.load import auto_class, load_from_hub_or_folder, load_weights
from raysft.model.text_part import text_part

WEIGHTS = "adapter_model.safetensors"  # as peft names it
PREFIX = "base_model.model."  # of a weight in it
Weights = dict[str, torch.Tensor]  # whole, by the names that they have in the model


def write_adapted(
    model: Any, weights: Weights, folder: Path, *, merged: bool, dtype: torch.dtype
) -> None:
    """model: with an adapter; its own weights are not read. weights: those of the adapter among
    them. Merged, the folder is that of a whole model; else that of an adapter, as peft loads it.

    Raises UserError where the model that it was trained on is gone.
    """
    if not merged:
        write_adapter(model, weights, folder)
        return
    beside = folder.with_name(folder.name + ".adapter")
    write_adapter(model, weights, beside)
    # Summed in fp32 and rounded once.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    base = load_weights(base_of(beside), copy.deepcopy(model.config), options)
    whole = with_adapter(base, beside, merged=True).to(dtype)
    shutil.rmtree(beside)
    whole.generation_config = model.generation_config
    whole.save_pretrained(folder)


def write_adapter(model: Any, weights: Weights, folder: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Embeddings are never trained with it.
    found = get_peft_model_state_dict(model, weights, NAME, save_embedding_layers=False)
    named = {PREFIX + name: value.contiguous() for name, value in found.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    replace(peft_config_of(model), inference_mode=True).save_pretrained(folder)


def without_weights(hf_config: Any, folder: Path) -> Any:
    """A model with the adapter that a folder describes: names and sizes, and no numbers."""
    from peft import PeftConfig

    with torch.device("meta"):
        model = auto_class(False).from_config(hf_config)
        inject(model, PeftConfig.from_pretrained(folder))
    return model


def load_adapted(folder: Path, **options: Any) -> Any:
    """The model of an adapter's folder, with it beside its weights. options: of the model's
    from_pretrained. Raises UserError where the model does not load."""
    from transformers import AutoConfig

    base = base_of(folder)
    hf_config = text_part(load_from_hub_or_folder(AutoConfig, base, "model"), base)
    return with_adapter(load_weights(base, hf_config, options), folder, merged=False)


def with_adapter(base: Any, folder: Path, *, merged: bool) -> Any:
    from peft import PeftModel

    with without_future_warnings():
        wrapped = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
    return wrapped.merge_and_unload() if merged else wrapped.get_base_model()
