"""What a worker holds at its fullest moment, by part, for every ZeRO stage.

What DeepSpeed 0.19.8 allocates, in the terms of ZeRO (Rajbhandari et al. 2020, section 5): N
parameters, W workers, b bytes a weight.
"""

from dataclasses import dataclass

from raysft.config.deepspeed import deepspeed_config
from raysft.config.schema import Config
from raysft.estimate.families import Dims
from raysft.estimate.shape import parameters, trained

GIB = 2**30
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Of a worker before it has a model: interpreter, torch, Ray, DeepSpeed and their libraries.
# Measured, with the versions of constraints.txt; on a GPU it is not on the device.
CPU_PROCESS_GIB = 0.50
LOGIT_BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # head_nll.BLOCK_BYTES


@dataclass(frozen=True)
class Layout:
    """What of a config decides the memory of one worker."""

    stage: int
    workers: int
    weight_bytes: int  # b: of a weight, a raw gradient, an activation
    accumulates: bool  # more than one micro-batch in a step: gradients are summed in fp32
    micro_batch_tokens: int
    record_tokens: int  # T
    checkpointing: bool
    eager: bool  # attention that keeps its T x T probabilities
    offload_optimizer: bool
    offload_params: bool
    on_gpu: bool
    bucket: int  # elements of a collective
    live_parameters: int  # elements that ZeRO-3 keeps gathered at most


def layout_of(config: Config) -> Layout:
    batch, engine = config.batch, config.engine
    zero = deepspeed_config(config)["zero_optimization"]
    tokens = batch.pack_tokens if batch.packing else batch.micro_batch_size * batch.seq_len
    return Layout(
        stage=engine.stage,
        workers=config.scaling.most,
        weight_bytes=WEIGHT_BYTES[engine.precision],
        accumulates=config.grad_accum_steps > 1,
        micro_batch_tokens=tokens,
        record_tokens=batch.seq_len,
        checkpointing=config.model.recomputes,
        eager=config.model.attention == "eager",
        offload_optimizer=engine.offload_optimizer,
        offload_params=engine.offload_params,
        on_gpu=config.on_gpu,
        # DeepSpeed's defaults where we set none.
        bucket=zero.get("reduce_bucket_size", 500_000_000),
        live_parameters=zero.get("stage3_max_live_parameters", 1_000_000_000),
    )


def memory_gib(config: Config, dims: Dims) -> dict[str, float]:
    """GiB of the worker's device by part, at its fullest moment; the sum is the predicted peak."""
    return {name: size / GIB for name, size in memory_bytes(layout_of(config), dims).items()}


def memory_bytes(layout: Layout, dims: Dims) -> dict[str, float]:
    """The fuller of two moments: the backward pass, and the update after it.

    On a CPU at stages 1 and 2 their sum: the update works on a whole partition at once, for which
    none of the pieces that the backward pass freed is large enough, and the process keeps both.
    """
    process = {} if layout.on_gpu else {"process": CPU_PROCESS_GIB * GIB}
    beside = dims.adapter.trained if dims.adapter else 0
    states = model_states(layout, sum(parameters(dims).values()) + beside, trained(dims))
    backward = {
        "gathered weights": gathered(layout, dims),
        "activations": activations(layout, dims),
        "work of a layer": work_of_a_layer(layout, dims),
        "loss": loss(layout, dims),
        "raw gradients": raw_gradients(layout, dims),
    }
    updating = {"update": update(layout, dims)}
    if not layout.on_gpu and layout.stage in (1, 2):
        return process | states | backward | updating
    return process | states | max(backward, updating, key=lambda parts: sum(parts.values()))


def model_states(layout: Layout, count: int, updated: int | None = None) -> dict[str, float]:
    """Weights, gradients, FP32 master weights and Adam's two moments; `count`: N. updated: those
    that are trained, all where None.

    ZeRO-1 splits master and moments over the workers, ZeRO-2 gradients too, ZeRO-3 weights too.
    Gradients are kept in fp32 where micro-batches are summed, else as the weights are.
    """
    stage, workers, b = layout.stage, layout.workers, layout.weight_bytes
    gradient = 4 if layout.accumulates else b
    updated = count if updated is None else updated
    share = {first: updated / (workers if stage >= first else 1) for first in (1, 2)}
    states = {
        "weights": b * count / (workers if stage == 3 else 1),
        "gradients": gradient * share[2],
        # Stage 0 trains in fp32 only, on the weights themselves.
        "master weights": 4.0 * share[1] if stage else 0.0,
        "Adam moments": 8.0 * share[1],
    }
    if not layout.on_gpu:
        return states  # offloading to the CPU that already holds them frees nothing
    if layout.offload_optimizer:
        states |= {"master weights": 0.0, "Adam moments": 0.0}
        states |= {"gradients": 0.0} if stage >= 2 else {}
    if layout.offload_params:
        states["weights"] = 0.0
    return states


def gathered(layout: Layout, dims: Dims) -> float:
    """Whole weights that ZeRO-3 holds beside the partitions: of the layers around the current one.

    With one worker a partition is the whole, and nothing is gathered.
    """
    if layout.stage < 3 or (layout.workers == 1 and not layout.offload_params):
        return 0.0
    count = sum(parameters(dims).values())
    return layout.weight_bytes * float(min(count, layout.live_parameters))


def activations(layout: Layout, dims: Dims) -> float:
    """Kept by the forward pass for the backward, of all layers.

    With activation checkpointing d a layer, and one layer in full.
    """
    token = kept(layout, dims)
    numbers = dims.n_layer * token
    if layout.checkpointing:
        numbers = dims.n_layer * dims.n_embd + token
    return layout.weight_bytes * layout.micro_batch_tokens * numbers


def kept(layout: Layout, dims: Dims) -> float:
    """Numbers that a layer keeps of a token, as it computes here, each as wide as a weight.

    The method is that of Korthikanti et al. 2022, section 4.1; a test counts them. Attention keeps
    queries, keys, values, and its output twice; an MLP what goes into its activation and what comes
    out, and of a gated one the other factor and the product. A LayerNorm keeps what it reads, an
    RMSNorm that in fp32 and what it has divided, and whoever reads a norm keeps what it gives. That
    is 17 d of GPT-2. Attention with scores keeps H x T of them, twice or more.
    """
    d, query, key_value = dims.n_embd, dims.query, dims.key_value
    wide = 4 / layout.weight_bytes  # fp32
    mlp = dims.inner * (4 if dims.gated else 1 if dims.relu else 2)
    attention = 3.0 * query + 2 * key_value
    # What it has divided is kept for the gradient of its weight.
    norm = wide if dims.adapter else wide + (wide if dims.weighs_in_fp32 else 1)
    norms = dims.norms * norm if dims.rms_norm else 1 if dims.parallel else dims.norms
    read = min(dims.norms, 2)
    total = mlp + attention + d * (norms + read)
    if dims.qk_norms:
        total += norm * (query + key_value)
    if layout.eager or dims.soft_capped:
        total += (2 if layout.eager else 3) * dims.n_head * layout.record_tokens
    if dims.adapter:
        # What dropout leaves, and which it was, a byte each on a GPU, in place of what it read.
        mask = 1 / layout.weight_bytes if layout.on_gpu else 1
        total += dims.adapter.kept + dims.adapter.dropped * (1 + mask) - dims.adapter.replaced
    return total


def work_of_a_layer(layout: Layout, dims: Dims) -> float:
    """What the backward pass of one layer needs at once: gradients inside the MLP and of the width
    twice, and on a CPU attention in fp32, with its gradients."""
    inside = dims.inner * (4 if dims.gated else 2)
    numbers = layout.weight_bytes * (inside + 2.0 * dims.n_embd)
    if not layout.on_gpu:
        numbers = max(numbers, 4 * 4.0 * (dims.query + dims.key_value))
    return layout.micro_batch_tokens * numbers


def loss(layout: Layout, dims: Dims) -> float:
    """Hidden states at supervised positions and their gradient, and a block of logits: as the head
    gives them, their logarithms and gradients in fp32, and those rounded to go on. On a GPU also
    the sum of the weight's gradient over blocks, in fp32."""
    b, tokens = layout.weight_bytes, layout.micro_batch_tokens
    block = LOGIT_BLOCK_BYTES["cuda" if layout.on_gpu else "cpu"]
    in_block = min(tokens, block / (4 * dims.vocabulary))
    sums = layout.on_gpu and in_block < tokens and not dims.adapter
    summed = 4.0 * dims.vocabulary * dims.n_embd if sums else 0.0
    return 2.0 * b * tokens * dims.n_embd + in_block * dims.vocabulary * (4.0 + 2 * b) + summed


def raw_gradients(layout: Layout, dims: Dims) -> float:
    """Gradients as autograd makes them, until they are reduced: at stage 1 all, else a bucket and
    that of the token embedding, which both ends of the model fill where they are tied, once more
    than it is kept."""
    if dims.adapter:
        least = min(layout.bucket, dims.adapter.trained)
        return layout.weight_bytes * float(layout.bucket if layout.stage >= 2 else least)
    embedding = dims.vocabulary * dims.n_embd
    if layout.stage == 1:
        again = embedding if dims.tied else 0
        return layout.weight_bytes * float(sum(parameters(dims).values()) + again)
    return layout.weight_bytes * (2.0 * embedding + layout.bucket)


def update(layout: Layout, dims: Dims) -> float:
    """DeepSpeed's norm takes each gradient in fp64. Stage 1 lays all of its partition together in
    fp32. With several workers, stages 1 and 2 lay the weights together to send them, and stage 1
    the largest gradient."""
    count, b = trained(dims), layout.weight_bytes
    largest = dims.adapter.largest if dims.adapter else dims.vocabulary * dims.n_embd
    norm = 8.0 * largest / (layout.workers if layout.stage >= 2 else 1)
    weights = float(b * count) if layout.workers > 1 else 0.0
    if layout.stage == 1:
        gradient = (4 if layout.accumulates else b) * largest if layout.workers > 1 else 0
        return max(norm, 4.0 * count / layout.workers) + gradient + weights
    return max(norm, weights) if layout.stage == 2 else norm
