"""What "auto" comes to: of the ways to compute a step, the fastest that fits the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.estimate.families import Dims
from raysft.estimate.memory import GIB, layout_of, memory_bytes

# Of a micro-batch, from which on the device gains nothing more. On an H100 the host needs some
# 60 ms to launch one of GPT-2 Large, in which its GPU computes about 4,096 tokens.
ENOUGH_TOKENS = {"gpu": 16_384, "cpu": 2_048}
FEW_TOKENS = {kind: enough // 4 for kind, enough in ENOUGH_TOKENS.items()}
# Of the device's memory: the estimate is good to 10 %, and a CUDA context takes half a GiB.
SAFE = 0.9


@dataclass(frozen=True)
class Way:
    stage: int
    recomputes: bool
    tokens: int | None  # of a micro-batch; None without packs

    def of(self, config: Config) -> Config:
        values = {
            "engine.zero_stage": self.stage,
            "model.activation_checkpointing": self.recomputes,
            "batch.tokens_per_micro_batch": self.tokens,
        }
        chosen = {key: values[key] for key in config.left_open}
        return validate(with_overrides(config.model_dump(mode="json"), chosen), "auto")


def choose(config: Config, dims: Dims | None, memory_gib: float | None) -> tuple[Config, str]:
    """The config with a value for every key that says "auto", and why, as an equation.

    dims: None where this arithmetic does not hold for the model. memory_gib: of a worker's device;
    None where it is not known, and all is taken to fit. Where nothing fits, what needs least.
    """
    found = in_order(config)
    if dims is None:
        cautious = found[-1].of(config)
        return cautious, f"{words(cautious)}: what needs least, for a model of another kind"
    room = inf if memory_gib is None else SAFE * memory_gib
    needs = {way: needed_gib(way.of(config), dims) for way in found}
    fits = next((way for way in found if needs[way] <= room), None)
    best = fits or min(found, key=lambda way: needs[way])
    chosen = best.of(config)
    if memory_gib is None:
        return chosen, f"{words(chosen)} = {needs[best]:.1f} GiB a worker"
    share = f"{needs[best]:.1f} of {memory_gib:.1f} GiB a worker"
    limit = f"at most {SAFE:.0%}" if fits else "more than is safe: see what fits by estimate"
    return chosen, f"{words(chosen)} = {share}, {limit}"


def ways(config: Config) -> Iterator[Way]:
    engine, model, batch = config.engine, config.model, config.batch
    stages: tuple[int, ...] = (1, 2, 3)
    if engine.zero_stage != "auto":
        stages = (engine.zero_stage,)
    elif engine.offload_params:
        stages = (3,)
    recomputing: tuple[bool, ...] = (False, True)
    if model.activation_checkpointing != "auto":
        recomputing = (model.activation_checkpointing,)
    tokens: tuple[int | None, ...] = (None,)
    if batch.packing:
        open_ = batch.tokens_per_micro_batch == "auto"
        tokens = sizes(config) if open_ else (batch.pack_tokens,)
    for stage, recomputes, count in product(stages, recomputing, tokens):
        yield Way(stage, recomputes, count)


def sizes(config: Config) -> tuple[int, ...]:
    """Of a pack, the largest first: enough for the device, but no more than a worker's share of a
    step, and half of it again and again down to one record of `batch.seq_len`."""
    batch = config.batch
    share = -(-batch.global_batch_size // config.scaling.fewest)
    records = min(share, ENOUGH_TOKENS["gpu" if config.on_gpu else "cpu"] // batch.seq_len)
    halves = [max(1, records) >> power for power in range(max(1, records).bit_length())]
    return tuple(count * batch.seq_len for count in halves)


def in_order(config: Config) -> list[Way]:
    """The fastest first. Recomputing costs a third, and a higher stage the host's time or traffic:
    both more than a smaller micro-batch does, as long as that has not too few tokens."""
    found = list(ways(config))
    few = min(FEW_TOKENS["gpu" if config.on_gpu else "cpu"], max(way.tokens or 0 for way in found))

    def cost(way: Way) -> tuple[bool, bool, int, int]:
        tokens = way.tokens or 0
        return tokens < few, way.recomputes, way.stage, -tokens

    return sorted(found, key=cost)


def needed_gib(config: Config, dims: Dims) -> float:
    return sum(memory_bytes(layout_of(config), dims).values()) / GIB


def words(config: Config) -> str:
    """Such as "ZeRO-1, packs of 16,384 tokens, no activation checkpointing"."""
    parts = [f"ZeRO-{config.engine.stage}" if config.engine.stage else "no ZeRO"]
    parts += [f"packs of {config.batch.pack_tokens:,} tokens"] if config.batch.packing else []
    parts += [("" if config.model.recomputes else "no ") + "activation checkpointing"]
    return ", ".join(parts)
