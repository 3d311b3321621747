"""Model and tokenizer from hub, folder or scratch, correct under ZeRO-3."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from raysft.config.data import DEMO
from raysft.config.schema import Config
from raysft.data.template import Template, install_template
from raysft.errors import UserError, is_cut_off, is_out_of_memory
from raysft.model.adapter import add_adapter
from raysft.model.attention import PACKED, register
from raysft.model.cpu_bf16 import widen_linears
from raysft.model.dropout import set_dropout, set_module_dropout
from raysft.model.files import require_embeddings, require_place, require_positions
from raysft.model.initialise import from_scratch
from raysft.model.scalar import HEAD, add_pad_token, make_scalar, prepare_scalar, require_causal
from raysft.model.text_part import KEY_MAPPING, text_part, use_own_names

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Kinds of layers that look at blocks of tokens, wherever a record in a pack begins: only records
# longer than the blocks show it, so that no short try can.
BLOCKWISE = {
    "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention",
    "minimax_m3_sparse", "window_attention",
}  # fmt: skip


def load_tokenizer(config: Config) -> Any:
    """Raises UserError when it cannot be loaded."""
    if config.model.tokenizer_path == DEMO:
        from raysft.data import demo
        from raysft.data.read import DEMO_RECORDS

        return demo.train_tokenizer(demo.generate(DEMO_RECORDS, config.run.seed))
    from transformers import AutoTokenizer

    return load_from_hub_or_folder(AutoTokenizer, config.model.tokenizer_path, "model.tokenizer")


def load_template(config: Config, *, pads: bool = False) -> Template:
    """The tokenizer with its chat template, and with a padding token of its own where it `pads`.

    Raises UserError when they do not load or fit.
    """
    day = date.fromisoformat(config.data.date) if config.data.date else None
    tokenizer = load_tokenizer(config)
    added = add_pad_token(tokenizer) if pads else 0
    template = install_template(tokenizer, config.data.template, day)
    return replace(template, num_added=template.num_added + added)


def load_from_hub_or_folder(loader: Any, path: str, key: str, **options: Any) -> Any:
    """`loader.from_pretrained`, with every failure turned into a message about `key`.

    Code that comes with a model is never run. Were it not said so, transformers would ask the
    terminal whether to, and take any "y" that it reads there.
    """
    require_place(path, key)
    try:
        return loader.from_pretrained(path, trust_remote_code=False, **options)
    except UnpicklingError:  # PyTorch's words tell how to load it all the same
        raise UserError(
            f"{key}: {path} is not loaded: its weights are a pickle that holds more than tensors, "
            "and could run code. Take a model with safetensors files"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        if "custom code" in str(error):
            raise UserError(
                f"{key}: {path} brings Python code of its own, which raysft does not run: take a "
                "model of a type that transformers has"
            ) from None
        if Path(path).is_dir():
            raise UserError(f"{key}: {path} does not load: {error}") from None
        raise UserError(
            f"{key}: {path!r} is no local folder, and what the Hugging Face hub has of that name "
            f"does not load: {error}"
        ) from None
    except Exception as error:  # wrong in ways that transformers does not look for
        if is_out_of_memory(error) or is_cut_off(error):
            raise
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{key}: {path} does not load: {words}") from error


def load_model_config(config: Config, template: Template, *, scalar: bool = False) -> Any:
    """The Hugging Face config of the model to train; with a head of one number where it is scalar.

    Raises UserError: not loadable, no causal language model, fewer positions than `batch.seq_len`,
    or fewer embeddings than the tokenizer has tokens.
    """
    from transformers import AutoConfig, GPT2Config

    model, tokenizer = config.model, template.tokenizer
    if model.init == "scratch" and model.shape:
        shape = model.shape.model_dump(exclude_none=True)
        hf_config = GPT2Config(**{"vocab_size": len(tokenizer)} | shape)
    else:
        hf_config = load_from_hub_or_folder(AutoConfig, str(model.path), "model.path")
        hf_config = text_part(hf_config, str(model.path))
        if model.init == "scratch":
            hf_config.vocab_size = len(tokenizer)
    require_positions(config, getattr(hf_config, "max_position_embeddings", None))
    tokens = len(tokenizer)
    require_embeddings(config, tokens, tokens - template.num_added, hf_config.vocab_size)
    hf_config.bos_token_id = tokenizer.bos_token_id
    stop_ids = template.stop_ids
    hf_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    set_dropout(hf_config, model.dropout)
    if config.adapter.is_there:
        require_known_tokens(template, scalar=scalar)
    if scalar:
        make_scalar(hf_config, tokenizer)
    else:
        require_causal(hf_config, str(model.path))
    hf_config.architectures = None  # save_pretrained fills in the class that was trained
    return hf_config


def require_known_tokens(template: Template, *, scalar: bool) -> None:
    """Raises UserError for what an adapter leaves as it is, and has to be trained."""
    if scalar:
        raise UserError(
            "adapter.rank: the head of a reward model is trained with all of its weights, and an "
            "adapter would leave it as it was drawn: leave out [adapter]"
        )
    if template.num_added:
        raise UserError(
            f"adapter.rank: data.template adds {template.num_added} tokens that the model does not "
            "know, and an adapter leaves embeddings as they are: take the model's own template, or "
            '"plain" or "alpaca", which add none'
        )


def load_model(
    config: Config,
    hf_config: Any,
    deepspeed_config: dict[str, Any],
    num_tokens: int,
    *,
    scalar: bool = False,
) -> Any:
    """The model, for ZeRO-3 straight into partitions: no rank ever holds all of it.

    transformers looks for a living HfDeepSpeedConfig while it builds a model. Without one, ZeRO-3
    would either load everything on every rank or initialise empty partitions.

    `num_tokens`: the tokenizer's, which a template may have given tokens that the model lacks.
    scalar: with a head of one number in place of the vocabulary.
    """
    from transformers.integrations import HfDeepSpeedConfig

    pad_token_id = hf_config.pad_token_id if scalar else None  # not all others have one
    if scalar:  # embeddings are made with it, before the token that was added has its row
        hf_config.pad_token_id = None
    partitioned = config.engine.stage == 3
    alive = HfDeepSpeedConfig(deepspeed_config) if partitioned else None
    torch.manual_seed(config.run.seed)
    options = {
        "attn_implementation": attention_for(config, hf_config),
        "dtype": DTYPES[config.engine.precision],
    }
    if config.model.init == "scratch":
        model = from_scratch(auto_class(scalar), hf_config, options, config.run.seed)
        lacks_head = True
    else:
        model, lacks_head = load_with_head(
            str(config.model.path), hf_config, options, scalar=scalar
        )
    if num_tokens > model.config.vocab_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    if scalar:
        model.config.pad_token_id = hf_config.pad_token_id = pad_token_id
        prepare_scalar(model, config.run.seed, draws_head=lacks_head)
    set_module_dropout(model, config.model.dropout)
    fuse_gelu(model)
    if config.adapter.is_there:
        add_adapter(config, model)
    del alive
    widen_linears(model)
    if model.can_generate():
        model.generation_config.eos_token_id = hf_config.eos_token_id
    if config.model.recomputes:
        # Re-entrant, because ZeRO-3 frees parameters between forward and recomputation, which the
        # other kind takes for a change of the recomputed tensors.
        model.gradient_checkpointing_enable({"use_reentrant": True})
    return model.train()


def auto_class(scalar: bool) -> Any:
    """What transformers makes such a model with."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if scalar else AutoModelForCausalLM


def load_weights(path: str, hf_config: Any, options: dict[str, Any]) -> Any:
    """Raises UserError where the files lack a weight, which would be a random one."""
    return load_with_head(path, hf_config, options, scalar=False)[0]


def load_with_head(
    path: str, hf_config: Any, options: dict[str, Any], *, scalar: bool
) -> tuple[Any, bool]:
    """The model, and whether a scalar one lacks the weights of its head, as a causal one does.

    Raises UserError where the files lack another weight, which would be a random one.
    """
    model, found = load_from_hub_or_folder(
        auto_class(scalar), path, "model.path",
        config=hf_config, key_mapping=KEY_MAPPING, output_loading_info=True, **options,
    )  # fmt: skip
    of_head = {name for name in found["missing_keys"] if scalar and name.startswith(f"{HEAD}.")}
    if missing := sorted(found["missing_keys"] - of_head):
        raise UserError(
            f"model.path: {path} lacks {len(missing)} weights of {type(model).__name__}, such as "
            f"{missing[0]}: it would begin with random ones. Take a folder that holds them, or a "
            'model.init = "scratch"'
        )
    use_own_names(model)
    return model, bool(of_head)


def attention_for(config: Config, hf_config: Any) -> str:
    """Its name in transformers. "sdpa" is raysft's own for packs, where the model takes one from
    elsewhere, and PyTorch's where it has that; else transformers' plain one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    wanted: str = config.model.attention
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(hf_config), None)
    if wanted != "sdpa" or model is None:
        return wanted
    kinds = set(getattr(hf_config.get_text_config(), "layer_types", None) or ())
    if config.batch.packing and model._supports_attention_backend and not kinds & BLOCKWISE:
        register()
        return PACKED
    return "sdpa" if model._supports_sdpa else "eager"


def fuse_gelu(model: nn.Module) -> None:
    """GPT-2's activation as one kernel in place of eight: the same function, and what it keeps for
    the backward pass is its input alone.
    """
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
