"""Load a checkpoint that another number of workers or another ZeRO stage saved.

It goes through DeepSpeed's universal checkpoint, where each parameter has a folder with its weights
and optimizer state, whole. DeepSpeed 0.19.8 writes there what the same stage will read, and does
neither for stage 0. So this makes the folders of all stages alike, and writes and reads stage 0.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysft.train.checkpoint import layout
from raysft.train.checkpoint.layout import SHARDED_MODEL, TAG, WHOLE_MODEL
from raysft.train.optimizer import decay_groups

STATES = ("fp32", "exp_avg", "exp_avg_sq")  # files of a parameter: its weights, Adam's averages
COMMON = "optimizer_state.pt"  # what all parameters share


def load_converted(engine: Any, folder: Path, stage: int) -> Any:
    """Returns what engine.load_checkpoint does: path and client state. Every rank must call it.

    stage: the one that saved it. The engine may be left with hyperparameters of the checkpoint.
    """
    universal = layout.converted(folder)
    parameters = universal / TAG / "zero"
    if dist.get_rank() == 0:
        if universal.is_symlink():  # which rmtree leaves, and DeepSpeed reads whatever is there
            universal.unlink()
        shutil.rmtree(universal, ignore_errors=True)
        write_universal(engine, folder / TAG, universal / TAG, stage)
    dist.barrier()
    if engine.zero_optimization():
        engine._config.load_universal_checkpoint = True
        loaded = engine.load_checkpoint(str(universal), tag=TAG)
        engine._config.load_universal_checkpoint = False
    else:
        loaded = engine.load_checkpoint(
            str(universal), tag=TAG, load_module_strict=False, load_optimizer_states=False
        )
        read_whole(engine, parameters)
    set_step(engine, torch.load(parameters / COMMON, weights_only=False)["step"])
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(universal)
    return loaded


def write_universal(engine: Any, saved: Path, universal: Path, stage: int) -> None:
    """From the files of `stage`, for the stage that the engine has now. Rank 0 alone calls it."""
    parameters = universal / "zero"
    if stage == 0:
        common = write_whole(engine, saved / WHOLE_MODEL, parameters)
    else:
        common = write_partitioned(saved, universal)
    write_common(common, parameters / COMMON)
    before, now = (
        SHARDED_MODEL if one == 3 else WHOLE_MODEL
        for one in (stage, engine.zero_optimization_stage())
    )
    # Its weights are in the folders; the rest is counters and the client state.
    model = torch.load(saved / before, map_location="cpu", weights_only=False)
    torch.save(model | {"module": {}, "optimizer": None}, universal / now)


def write_partitioned(saved: Path, universal: Path) -> dict[str, Any]:
    """The parameters that ZeRO partitioned. Returns what they share."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(saved), output_folder=str(universal), num_extract_workers=1,
        num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    ds_to_universal.main(options)
    parameters = universal / "zero"
    common: dict[str, Any] = torch.load(parameters / COMMON, weights_only=False)
    steps = list(parameters.glob("*/step.pt"))
    if steps:  # stages 1 and 2
        return common | {"step": torch.load(steps[0])}
    for path in [path for name in STATES for path in parameters.glob(f"*/{name}.pt")]:
        torch.save({"param": torch.load(path)}, path)
    return common | {"step": common["optimizer_state_dict"]["state"][0]["step"]}


def write_whole(engine: Any, model: Path, parameters: Path) -> dict[str, Any]:
    """The parameters of stage 0. Returns what they share."""
    saved = torch.load(model, map_location="cpu", weights_only=False)
    optimizer = saved["optimizer"]
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    groups = decay_groups(engine.module.named_parameters(), 0.0)
    in_order = [names[id(parameter)] for group in groups for parameter in group["params"]]
    for index, name in enumerate(in_order):
        (parameters / name).mkdir(parents=True)
        state = optimizer["state"][index] | {"fp32": saved["module"][name]}
        for key in STATES:
            # A clone, because the file of a view holds all that it is a view of.
            torch.save({"param": state[key].clone()}, parameters / name / f"{key}.pt")
    return {"param_groups": optimizer["param_groups"], "step": optimizer["state"][0]["step"]}


def write_common(common: dict[str, Any], path: Path) -> None:
    """With all that any stage asks for, and without the partition that stage 3 left in it."""
    import deepspeed

    keys = ("step", "param_groups", "loss_scaler", "dynamic_loss_scale", "overflow")
    kept = {key: common[key] for key in keys if key in common}
    kept["ds_version"] = deepspeed.__version__  # of stages 1 and 2
    kept["optimizer_state_dict"] = {  # of stage 3
        "state": {0: {"step": kept["step"]}}, "param_groups": kept["param_groups"],
    }  # fmt: skip
    torch.save(kept, path)


@torch.no_grad()
def read_whole(engine: Any, parameters: Path) -> None:
    """Weights and optimizer state for an engine of stage 0."""
    trained = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        files = {key: parameters / name / f"{key}.pt" for key in STATES}
        whole = {
            key: torch.load(file)["param"].view_as(parameter).to(parameter.device)
            for key, file in files.items()
        }
        parameter.copy_(whole.pop("fp32"))
        engine.optimizer.state[parameter] = whole


def set_step(engine: Any, step: Any) -> None:
    """Adam's step counter, one to each partition.

    DeepSpeed 0.19.8 gives all partitions the same tensor, which each of them would then advance,
    and those of stages 1 and 2 none where stage 3 saved it.
    """
    optimizer = engine.basic_optimizer
    for parameter, state in optimizer.state.items():
        if isinstance(optimizer, torch.optim.Adam):
            state["step"] = torch.tensor(float(step), device=parameter.device)
        else:
            state["step"] = int(step)  # DeepSpeed's CPU Adam counts in Python
