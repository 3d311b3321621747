"""`raysft export`: the weights of a checkpoint as a Hugging Face folder, without Ray."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from raysft.config.load import validate
from raysft.config.schema import Config
from raysft.errors import RunError, UserError
from raysft.model.card import Facts, facts_of, write_card
from raysft.model.files import ADAPTER
from raysft.model.hub import push
from raysft.runs import rundir, snapshot
from raysft.train.checkpoint import layout, repair
from raysft.train.checkpoint.integrity import damage, refuse_code

GENERATION_CONFIG = "generation_config.json"


def export_checkpoint(source: Path, to: Path | None, *, merged: bool | None = None) -> Path:
    """`source` is a run directory (its newest checkpoint is taken) or one checkpoint folder.

    The weights are the fp32 ones that the optimizer keeps, in the precision of the run. merged: of
    a run with an adapter, whether a whole model is written or the adapter alone; None is as its
    config says.
    Raises UserError when there is no whole checkpoint or the target exists, and for `merged` of a
    run without an adapter.
    """
    run_dir = find_run(source)
    spec = rundir.read_run(run_dir / rundir.RUN, "config")
    config = validate(spec["config"], where=str(run_dir / rundir.RUN))
    if merged is not None and not config.adapter.is_there:
        raise UserError(f"{run_dir} has trained no adapter: leave out --merge and --adapter")
    checkpoint = newest_checkpoint(source) if source == run_dir else source
    target = to or run_dir / rundir.MODEL
    if target.exists():
        raise UserError(f"{target} exists: name another folder with --to, or remove it")
    if wrong := damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {wrong}. Name another one, if there is any")
    merged = config.adapter.merge if merged is None else merged
    facts = facts_of(run_dir, step_of(checkpoint))
    write_folder(config, checkpoint, target, facts, merged=merged)
    return target


def exported(source: Path) -> Path | None:
    """The model that a run has written at its end, where it was not gone on with since."""
    done = (source / rundir.MODEL).is_dir() and rundir.status(source) == "done"
    return source / rundir.MODEL if done else None


def push_run(folder: Path, source: Path, name: str, *, private: bool) -> str:
    """Upload an exported folder of the run, and return its URL. Raises RunError and UserError."""
    run_dir = find_run(source)
    where = run_dir / rundir.RUN
    config = validate(rundir.read_run(where, "config")["config"], where=str(where))
    at_the_end = folder == exported(run_dir)
    checkpoint = newest_checkpoint(run_dir) if source == run_dir and not at_the_end else source
    facts = facts_of(run_dir, None if at_the_end else step_of(checkpoint))
    return push(
        folder, name, private=private,
        write_card=lambda repo: write_card(config, folder, facts, repo),
    )  # fmt: skip


def step_of(checkpoint: Path) -> int:
    return int(json.loads(layout.manifest(checkpoint, 0).read_text())["step"])


def find_run(source: Path) -> Path:
    """The run directory: `source`, or what a checkpoint lies in. Raises UserError."""
    for run_dir in (source, source.resolve().parent.parent):
        if (run_dir / rundir.RUN).exists():
            return run_dir
    raise UserError(f"{source} is neither a run directory nor a checkpoint in one")


def newest_checkpoint(run_dir: Path) -> Path:
    """Raises UserError where there is none, or it is not known which."""
    folder = run_dir / rundir.CHECKPOINTS
    if wrong := repair.fault(folder):
        found = sorted(path.name for path in folder.glob(layout.FOLDERS) if path.is_dir())
        beside = f"name one of {', '.join(found)} in it" if found else "none lies beside it"
        raise UserError(f"{folder / snapshot.FILE} {wrong}: {beside}")
    kept = snapshot.checkpoints(run_dir)
    if not kept:
        raise UserError(f"{run_dir} has no checkpoint")
    return kept[-1]


def write_folder(
    config: Config, checkpoint: Path, target: Path, facts: Facts, *, merged: bool
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    from raysft.model.critic import without_value_head
    from raysft.model.load import DTYPES

    hf_folder = checkpoint / layout.HF_FOLDER
    weights = without_value_head(read_weights(checkpoint))
    hf_config = AutoConfig.from_pretrained(hf_folder, trust_remote_code=False)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = DTYPES[config.engine.precision]
    if (hf_folder / ADAPTER).exists():
        write_with_adapter(config, hf_config, weights, hf_folder, partial, merged=merged)
    else:
        model = filled(hf_config, weights, checkpoint, scalar=facts.get("verb") == "reward")
        if model.can_generate():
            keep_generation_config(model, hf_folder)
        model.to(dtype).save_pretrained(partial)
    tokenizer = AutoTokenizer.from_pretrained(hf_folder, trust_remote_code=False)
    tokenizer.save_pretrained(partial)
    write_card(config, partial, facts)
    set_modes(partial)
    partial.rename(target)


def filled(hf_config: Any, weights: dict[str, Any], checkpoint: Path, *, scalar: bool) -> Any:
    """The model of a checkpoint. Raises RunError where its weights are not those of one."""
    from raysft.model.load import auto_class

    model = auto_class(scalar).from_config(hf_config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    if set(missing) - tied or unexpected:
        raise RunError(
            f"{checkpoint} does not fit its model: {missing} missing, {unexpected} extra"
        )
    return model


def write_with_adapter(
    config: Config, hf_config: Any, weights: dict[str, Any], hf_folder: Path, to: Path, *,
    merged: bool,
) -> None:  # fmt: skip
    """Of a checkpoint that holds an adapter alone. The model lies where the config says now."""
    from raysft.model.adapter import peft_config_of, whereabouts
    from raysft.model.adapter_files import without_weights, write_adapted
    from raysft.model.load import DTYPES

    model = without_weights(hf_config, hf_folder)
    peft_config_of(model).base_model_name_or_path = whereabouts(str(config.model.path))
    keep_generation_config(model, hf_folder)
    dtype = DTYPES[config.engine.precision]
    rounded = {name: weight.to(dtype) for name, weight in weights.items()}
    write_adapted(model, rounded, to, merged=merged, dtype=dtype)


def keep_generation_config(model: Any, hf_folder: Path) -> None:
    """What the base model generates with, and the run's end tokens; older checkpoints lack it."""
    from transformers import GenerationConfig

    if (hf_folder / GENERATION_CONFIG).exists():
        model.generation_config = GenerationConfig.from_pretrained(hf_folder)


def set_modes(folder: Path) -> None:
    """As the umask says, like a plain file: safetensors makes such that their owner alone reads."""
    like = next(name for name in ("config.json", ADAPTER) if (folder / name).exists())
    for path in folder.iterdir():
        shutil.copymode(folder / like, path)


def read_weights(checkpoint: Path) -> dict[str, Any]:
    """Full parameters by name: as the engine computes with them, or fp32 where ZeRO-3 cut them up.

    Raises RunError where a file holds code.
    """
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    refuse_code(checkpoint)
    # The stage of the run's config may be another: this one may be older than its last resumption.
    whole = checkpoint / layout.TAG / layout.WHOLE_MODEL
    weights: dict[str, Any]
    if whole.exists():
        weights = torch.load(whole, weights_only=False)["module"]
    else:
        with redirect_stdout(StringIO()):  # it prints what it does
            weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=layout.TAG)
    return weights
