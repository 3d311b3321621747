"""What a config comes to, as equations that verbs share: pure arithmetic, nothing is read."""

from contextlib import suppress
from typing import TYPE_CHECKING

from raysft.errors import UserError
from raysft.runs import trackers

if TYPE_CHECKING:
    from raysft.config.data import Source
    from raysft.config.schema import Config


def batch_equation(config: "Config") -> str:
    batch, scaling = config.batch, config.scaling
    if batch.packing:
        share = f"packs of {pack_words(config)} on {scaling.words}"
    else:
        share = ", or ".join(
            f"{workers} workers x {batch.micro_batch_size} micro-batch x "
            f"{config.at(workers).grad_accum_steps} accumulation"
            for workers in sorted({scaling.fewest, scaling.most})
        )
    return f"{batch.global_batch_size} records = {share}"


def pack_words(config: "Config") -> str:
    batch = config.batch
    if batch.tokens_per_micro_batch == "auto":
        return "as many tokens as fit (auto)"
    return f"at most {batch.pack_tokens:,} tokens"


def model_equation(config: "Config") -> tuple[str, str]:
    shape = config.model.shape
    if config.model.init != "scratch" or shape is None:
        return "model", f"{config.model.path}, {config.model.init}"
    blocks = shape.n_layer * (12 * shape.n_embd**2 + 13 * shape.n_embd)
    return (
        "model",
        f"{blocks / 1e6:.1f} M parameters in blocks = {shape.n_layer} layers x "
        f"(12 x {shape.n_embd}² + 13 x {shape.n_embd}), plus embeddings, from scratch",
    )


def refuse_adapter(config: "Config", verb: str) -> None:
    """Raises UserError where there is one and the verb trains all weights."""
    if config.adapter.is_there:
        raise UserError(
            f"adapter.rank: raysft {verb} trains all weights, and has no adapters: leave out "
            "[adapter], or put it into [align.sft.adapter] where it is a stage of a chain"
        )


def inputs(config: "Config", *, reads_data: bool = True) -> list[tuple[str, str]]:
    """What is read besides the model."""
    data = config.data
    if not reads_data:
        words = "random tokens"
    elif data.eval_path is not None:
        words = f"{paths(data.path)}; held out: {paths(data.eval_path)}"
    elif data.eval_fraction:
        words = f"{paths(data.path)}; held out: {data.eval_fraction:g} of the records"
    else:
        words = f"{paths(data.path)}; held out: none"
    return [
        ("data", words),
        ("tokenizer", f"{config.model.tokenizer_path}, template {data.template}"),
    ]


def paths(named: "str | tuple[str | Source, ...]") -> str:
    parts = [named] if isinstance(named, str) else named
    return ", ".join(
        part if isinstance(part, str) else part.path + f" x {part.weight:g}" * (part.weight != 1)
        for part in parts
    )


def where_and_how(config: "Config") -> list[tuple[str, str]]:
    scaling = config.scaling
    return [
        *adapter_equation(config),
        (
            "workers",
            f"{scaling.count} x {scaling.cpus_per_worker} CPU"
            + (f" + {scaling.gpus_per_worker} GPU" if config.on_gpu else ""),
        ),
        ("engine", engine_words(config)),
        *([("logged to", logged)] if (logged := trackers.words(config)) else []),
    ]


def adapter_equation(config: "Config") -> list[tuple[str, str]]:
    """With what is trained of how much, where the model's arithmetic is known."""
    from raysft.estimate.shape import dims_of, parameters, trained

    words = config.adapter.words
    if words is None:
        return []
    with suppress(UserError, ValueError, KeyError, TypeError):  # told by whoever reads the model
        dims = dims_of(config)
        updated = trained(dims)
        total = sum(parameters(dims).values()) + updated
        words += f": trains {updated:,} of {total:,} parameters ({updated / total:.2%})"
    return [("adapter", words)]


def steps_equation(config: "Config") -> str:
    run, size = config.run, config.batch.global_batch_size
    if run.max_steps is not None:
        records = run.max_steps * size
        return f"{run.max_steps:,} (run.max_steps) x {size} = {records:,} records seen"
    return f"{run.epochs:g} epochs x training records / {size}, rounded up"


def cautions(config: "Config", total_steps: int, num_records: int) -> list[str]:
    """What a run of so many steps over so many training records does, and few would want."""
    from raysft.train.schedule import rate_at, warmup_steps

    lr, size = config.optim.lr, config.batch.global_batch_size
    found = []
    if (warmup := warmup_steps(config.schedule, total_steps)) > total_steps:
        found.append(
            f"the warmup of {warmup:,} steps is longer than the run of {total_steps:,}: its rate "
            f"ends at {rate_at(total_steps - 1, lr, config.schedule, total_steps):.3g} and never "
            f"reaches optim.lr {lr:g}. Set a shorter schedule.warmup_steps, or train longer"
        )
    elif total_steps == 1 and rate_at(0, lr, config.schedule, 1) < lr:
        floor = config.schedule.min_lr_ratio
        found.append(
            f"the run's only step trains at the floor of the rate, {lr * floor:g} = {floor:g} x "
            f"{lr:g}: set schedule.min_lr_ratio = 1 for all of optim.lr, or train longer"
        )
    if size > num_records:
        found.append(
            f"batch.global_batch_size {size:,} is more than the {num_records:,} training records: "
            f"every step sees some of them {-(-size // num_records)} times. Set it to "
            f"{num_records:,} or less"
        )
    return found


def engine_words(config: "Config") -> str:
    engine = config.engine
    words = [f"ZeRO stage {engine.zero_stage}", engine.precision]
    words += ["optimizer offloaded"] if engine.offload_optimizer else []
    words += ["parameters offloaded"] if engine.offload_params else []
    recomputes = config.model.activation_checkpointing
    words += ["activation checkpointing" + (" auto" if recomputes == "auto" else "")] * bool(
        recomputes
    )
    return ", ".join(words)
