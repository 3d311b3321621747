"""Model, DeepSpeed engine and optimizer on the device of a worker."""

import os
import sys
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from raysft.config.deepspeed import deepspeed_config
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.estimate.adapters import adapted
from raysft.estimate.families import dims_of_family
from raysft.estimate.memory import GIB, layout_of
from raysft.estimate.report import advice
from raysft.model.cpu_bf16 import choose as choose_products
from raysft.model.critic import add_value_head
from raysft.model.load import load_model
from raysft.runs import events, provenance
from raysft.runs.events import Emit
from raysft.train.memory import held_memory_gib, memory_kind
from raysft.train.optimizer import make_optimizer

ROUTER_LOSS = (
    "the model's config asks for the loss that balances its experts (output_router_logits = true), "
    "which raysft does not add: it trains the loss of the response tokens alone"
)


def start_engine(
    config: Config, hf_config: Any, num_tokens: int, emit: Emit, *, scalar: bool, critic: bool
) -> Any:
    """Model and DeepSpeed engine on this worker's device. num_tokens: the tokenizer's. scalar: the
    model gives rewards. critic: it has a value head as well."""
    os.environ["LOCAL_RANK"] = str(ray.train.get_context().get_local_rank())
    products = start_deepspeed(config)
    held = {"process": held_memory_gib(ray.train.torch.get_device())}
    settings = deepspeed_config(config)
    model = load_model(config, hf_config, settings, num_tokens, scalar=scalar)
    if critic:
        add_value_head(model, settings)
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    engine, kernel = make_engine(config, model)
    held["model states"] = held_memory_gib(engine.device) - held["process"]
    emit(
        events.Workers(
            world_size=dist.get_world_size(),
            parameters=sum(size for size, _ in sizes),
            trained=sum(size for size, is_trained in sizes if is_trained),
            optimizer=kernel,
            products=products,
            memory_kind=memory_kind(engine.device),
            memory_gib=held,
            observed=provenance.observed(),
        )
    )
    if getattr(hf_config.get_text_config(), "output_router_logits", False):
        emit(events.Warning(ROUTER_LOSS))
    if config.on_gpu:
        for line in what_fits(config, hf_config, engine.device):
            emit(events.Warning(line))
    return engine


def start_deepspeed(config: Config) -> str | None:
    """Make this process ready for an engine; its process group and LOCAL_RANK are there, and
    DeepSpeed adopts them. Returns how bf16 is multiplied, where there is a choice.

    Raises UserError where this device cannot compute in the precision.
    """
    import deepspeed

    torch.set_num_threads(config.scaling.cpus_per_worker)
    let_ninja_be_found()
    skip_inference_op(deepspeed)
    skip_compiled_muon()
    check_precision(config.engine.precision)
    deepspeed.init_distributed(dist_backend="nccl" if config.on_gpu else "gloo")
    # It would make a plan for every new length, half a second each, where PyTorch prefers it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if config.on_gpu:
        return None
    products = choose_products(config.engine.cpu_products)
    return products if config.engine.precision == "bf16" else None


def what_fits(config: Config, hf_config: Any, device: torch.device) -> list[str]:
    """What estimate says of this device: that less would do, or that it may not be enough."""
    dims = dims_of_family(hf_config.to_dict())
    total_gib = torch.cuda.get_device_properties(device).total_memory / GIB
    if dims is None:
        return []
    return advice(layout_of(config), adapted(dims, config.adapter), config, total_gib)


def let_ninja_be_found() -> None:
    """DeepSpeed calls it by name to compile its CPU Adam, and it lies beside this Python."""
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{beside}"


def skip_inference_op(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce, a minute at the first start.

    Only tensor-parallel inference on a CPU uses it; training goes through Gloo.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def skip_compiled_muon() -> None:
    """Keep DeepSpeed from importing torch's compiler for Muon, an optimizer that is not ours.

    ZeRO imports it to see whether the optimizer is one, and its functions are decorated: 537
    modules, almost a second of every worker's start.
    """
    from deepspeed.runtime import compiler

    wanted = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = wanted


def check_precision(precision: str) -> None:
    """Raises UserError where DeepSpeed would refuse the precision of this worker's device."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    if precision == "fp16" and not device.is_fp16_supported():
        raise UserError(
            "engine.precision: fp16 needs a device that can multiply it, and this "
            f'{device.device_name().upper()} cannot; take "bf16" or "fp32"'
        )


def make_engine(config: Config, model: nn.Module) -> tuple[Any, str]:
    """The engine and the name of the optimizer kernel in it, with the reason where it fell back."""
    import deepspeed

    if config.engine.stage == 3:
        gather_by_block(model)
    if config.model.compile:
        compile_blocks(model)
    optimizer, kernel = make_optimizer(config, model)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
    )
    return engine, kernel


def gather_by_block(model: nn.Module) -> None:
    """Let ZeRO-3 gather the weights of a block at once, and not those of each layer in it.

    Its hooks run on the host, and at 400 modules they take longer than a GPU does to compute.
    """
    from deepspeed.utils import set_z3_leaf_module

    for block in blocks(model):
        set_z3_leaf_module(block, True)


def compile_blocks(model: nn.Module) -> None:
    """torch.compile, of any length, because every pack has another."""
    for block in blocks(model):
        block.compile(dynamic=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer, which transformers names because no device map may cut them."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
