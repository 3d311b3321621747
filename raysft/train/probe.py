"""Before the first step: does this model, as it is laid out here, compute what transformers does?

Not every architecture keeps packed records apart: some have an attention of their own, or a state
that runs on from one record into the next. What such a run trains is another model than the one
that it exports, and no loss tells.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import Batch, pack, pad
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.model.attention import PACKED, told_windows
from raysft.model.scalar import is_scalar
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.train.loss import inner, supervised_nll, token_nll
from raysft.train.model_fault import may_heal

LENGTHS = (5, 33, 17)  # of the records
JUDGED, TRAINED = 1, 20  # the record whose gradient is looked at, and how many tokens of it train
# What limits how far a token sees, in configs and among the kinds of layers.
WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "local_attention")
WINDOWED = {"sliding_attention", "chunked_attention", "hybrid_sliding"}
# What rounding explains, by the bytes of a weight, as a share of what is compared.
ROUNDING = {4: 1e-4, 2: 0.1}


class Gap(NamedTuple):
    """How far records that are laid out together are from each of them alone, as shares."""

    losses: float  # of the losses of all tokens: of their distances from the mean loss
    gradient: float  # of the gradient of a record's embeddings
    leak: float  # gradient of what the loss must not depend on: later tokens, other records
    nats: float  # the largest difference of a token's loss

    def within(self, limit: float) -> bool:
        """A leak is none of rounding's: what is not seen has no gradient at all."""
        return max(self.losses, self.gradient) <= limit and self.leak <= 1e-6

    def words(self) -> str:
        if self.leak > 1e-6:
            return (
                "a record's loss depends on tokens that it must not see: their gradient is "
                f"{self.leak:.1g} of that of its own; a token's loss is off by {self.nats:.2g} nats"
            )
        return (
            f"a token's loss differs by {self.nats:.2g} nats from that of its record alone, and "
            f"the gradient by {self.gradient:.1%}, which rounding does not explain"
        )


def exact_layout(
    config: Config, engine: Any, vocabulary: int, longest: int, emit: Emit, *, parts: int = 1
) -> Config:
    """The config with records packed or padded so that each is computed as it is alone.

    longest: of what attends to itself, in tokens: a record, or one of its `parts`. Every rank must
    call it. Padded where packs are not exact, which is said. Raises UserError where neither is.
    """
    model = inner(engine)
    if (limit := rotated_alike_up_to(model)) < longest:
        emit(
            events.Warning(
                f"records reach {longest:,} tokens, and past {limit:,} this model rotates the "
                "positions of a whole batch by its longest record: shorter ones in it are computed "
                f"otherwise than alone. Set batch.seq_len = {limit} to train what is exported"
            )
        )
    name, records = type(model).__name__, random_records(vocabulary)
    if config.batch.packing and config.model.attention == "sdpa":
        fault: str | None = "its attention takes no packs"
        if model.config._attn_implementation == PACKED:
            told_windows.clear()
            fault = fault_of(engine, records, packing=True)
            fault = fault or untold_window(model, longest)
        if fault is None:
            return config
        use_own_attention(model)
        config = padded(config, parts * longest)
        emit(
            events.Warning(
                f"{name} does not keep packed records apart ({fault}): they are padded instead, "
                f"{config.batch.micro_batch_size} in a micro-batch"
            )
        )
    if fault := fault_of(engine, records, packing=config.batch.packing):
        raise UserError(
            f"{name} is not computed here as transformers computes it, and raysft cannot train it: "
            f"{fault}"
        )
    return config


def fault_of(engine: Any, records: TokenDataset, *, packing: bool) -> str | None:
    """What is wrong with records that are laid out so; None where they are as exact as alone."""
    limit = ROUNDING[next(inner(engine).parameters()).element_size()]
    try:
        gap = gap_of(engine, records, packing=packing)
    except Exception as error:  # a forward pass that misses its mask can raise anything
        if may_heal(error):
            raise
        first_line = str(error).strip().partition("\n")[0]
        return f"its forward pass ends in {type(error).__name__}: {first_line}"
    finally:
        engine.train()
        engine.empty_partition_cache()  # under ZeRO-3, what a pass that broke off has gathered
    return None if gap.within(limit) else gap.words()


def padded(config: Config, longest: int) -> Config:
    """As many records in a micro-batch as a pack has room for, were each as long as the longest."""
    batch = config.batch
    records = max(1, batch.pack_tokens // longest)
    update = {"packing": False, "micro_batch_size": records}
    return config.model_copy(update={"batch": batch.model_copy(update=update)})


def gap_of(engine: Any, records: TokenDataset, *, packing: bool) -> Gap:
    """Of records in one batch to transformers' own forward of each, by the worst rank.

    The loss of the first tokens of a record in the middle must have the gradient that it has
    alone, and none at all in what comes after them and in the other records.
    """
    engine.eval()
    model, count = forward_of(engine), len(records)
    batch = (pack if packing else pad)(records, np.arange(count)).to(engine.device)
    with torch.no_grad():
        losses = token_values(model, batch, batch.scored)
        wanted = torch.cat([alone(engine, records, index) for index in range(count)])
    with embeddings_of(model) as seen:
        (gradient,) = torch.autograd.grad(trained_sum(model, batch), seen[:1])
    with embeddings_of(model) as seen:
        trained = alone(engine, records, JUDGED)[: TRAINED - 1].sum()
        (right,) = torch.autograd.grad(trained, seen[:1])
    begin = int(records.starts[JUDGED] if packing else JUDGED * records.lengths.max())
    rest = gradient.flatten(0, -2).float()
    reach = TRAINED if is_scalar(engine) else TRAINED - 1  # tokens that the loss may depend on
    own, right = rest[begin : begin + reach].clone(), right[0, :reach].float()
    rest[begin : begin + reach] = 0
    found = [
        (losses - wanted).norm() / (wanted - wanted.mean()).norm(),
        (own - right).norm() / right.norm(),
        rest.abs().max() / right.abs().max(),
        (losses - wanted).abs().max(),
    ]
    worst = torch.stack(found).nan_to_num(torch.inf)
    if dist.is_initialized():
        dist.all_reduce(worst, dist.ReduceOp.MAX)
    return Gap(*worst.tolist())


def token_values(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """-log P of each token, or of a reward model the reward at it, fp32 [n]."""
    if not is_scalar(model):
        return token_nll(model, batch, tokens)
    rewards: Tensor = model(input_ids=batch.input_ids, tokens=tokens, **batch.inputs)
    return rewards


def trained_sum(model: Any, batch: Batch) -> Tensor:
    if is_scalar(model):
        return token_values(model, batch, batch.supervised).sum()
    return supervised_nll(model, batch)


def forward_of(engine: Any) -> Any:
    """What to call where the gradient is not asked of the engine: the model itself.

    But for ZeRO-3, whose hooks in the model begin in a backward pass what only the engine ends.
    """
    return engine if engine.zero_optimization_stage() == 3 else inner(engine)


def random_records(vocabulary: int) -> TokenDataset:
    lengths = np.array(LENGTHS)
    ids = np.random.default_rng(0).integers(0, vocabulary, lengths.sum()).astype(np.int32)
    mask, source = np.zeros(len(ids), dtype=np.bool_), np.zeros(len(lengths), np.uint16)
    starts = np.cumsum(lengths) - lengths
    mask[starts[JUDGED] : starts[JUDGED] + TRAINED] = True
    return TokenDataset(ids, mask, starts, lengths, lengths, source)


def untold_window(model: Any, longest: int) -> str | None:
    """Of a model that has limited how far a token sees by its mask alone, which packs do without.

    It would show in records that are longer than that, and those here are short.
    """
    hf_config = model.config.get_text_config()
    kinds = getattr(hf_config, "layer_types", None)
    if kinds and not WINDOWED & set(kinds):
        return None
    for name in WINDOWS:
        window = getattr(hf_config, name, None)
        if isinstance(window, int) and window < longest and window not in told_windows:
            return f"its attention does not apply its {name} of {window} tokens to them"
    return None


def rotated_alike_up_to(model: Any) -> float:
    """How long a record may be so that it does not change the positions of others in its batch.

    Past that, "dynamic" and "longrope" rotations depend on the longest record, in transformers too.
    """
    hf_config = model.config.get_text_config()
    rope = getattr(hf_config, "rope_parameters", None) or {}
    limits = [float("inf")]
    for one in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        if one.get("rope_type") == "longrope":
            limits.append(one["original_max_position_embeddings"])
        elif "dynamic" in str(one.get("rope_type")):
            limits.append(hf_config.max_position_embeddings)
    return min(limits)


def alone(engine: Any, records: TokenDataset, index: int) -> Tensor:
    """`token_values` of every token but the first, by transformers' own forward and attention."""
    ids = torch.from_numpy(records.tokens(index).astype(np.int64))[None].to(engine.device)
    model = forward_of(engine)
    mask = torch.ones_like(ids)
    with own_attention(inner(engine)):
        if is_scalar(engine):
            places = torch.arange(1, ids.shape[1], device=ids.device)
            rewards: Tensor = model(input_ids=ids, attention_mask=mask, tokens=places)
            return rewards
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")


@contextmanager
def embeddings_of(model: Any) -> Iterator[list[Tensor]]:
    """What the embeddings give, [B, T, d], as leaves to which a gradient can be asked for.

    Not parameters: those are partitions under ZeRO-3, and their gradients are the engine's.
    """
    leaves: list[Tensor] = []

    def cut(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    hook = inner(model).get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    use_own_attention(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def use_own_attention(model: Any) -> None:
    """Take an attention of transformers', which is told by a mask what is seen."""
    if model.config._attn_implementation == PACKED:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
