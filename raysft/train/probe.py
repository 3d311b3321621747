"""Before the first step: does this model, as it is laid out here, compute what transformers does?

Not every architecture keeps packed records apart: some have an attention of their own, or a state
that runs on from one record into the next. What such a run trains is another model than the one
that it exports, and no loss tells.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import pack, pad
from raysft.data.dataset import TokenDataset
from raysft.errors import UserError
from raysft.model.attention import PACKED
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.train.loss import inner, token_nll
from raysft.train.model_fault import last_line, may_heal

LENGTHS = (5, 33, 17)  # of the records; the second is longer than the shortest windows in use
# Nats a token that rounding explains, by the bytes of a weight.
ROUNDING = {4: 1e-3, 2: 0.25}


def exact_layout(config: Config, engine: Any, vocabulary: int, emit: Emit) -> Config:
    """The config with records packed or padded so that each is computed as it is alone.

    Every rank must call it. Padded where packs are not exact, which is said. Raises UserError where
    neither is.
    """
    model = inner(engine)
    name, limit = type(model).__name__, ROUNDING[next(model.parameters()).element_size()]
    if config.batch.packing and config.model.attention == "sdpa":
        found = why_not_packed(engine, vocabulary, limit)
        if found is None:
            return config
        use_own_attention(model)
        config = padded(config)
        emit(
            events.Warning(
                f"{name} does not keep packed records apart ({found}): they are padded instead, "
                f"{config.batch.micro_batch_size} in a micro-batch"
            )
        )
    gap = largest_gap(engine, vocabulary, packing=config.batch.packing)
    if not gap <= limit:
        raise UserError(
            f"{name} is not computed here as transformers does: a token's loss differs by "
            f"{gap:.2g} nats from that of its record alone, where rounding explains {limit:g}. "
            "raysft cannot train it"
        )
    return config


def why_not_packed(engine: Any, vocabulary: int, limit: float) -> str | None:
    """None where packed records are computed as each is alone."""
    if inner(engine).config._attn_implementation != PACKED:
        return "its attention takes no packs"
    try:
        gap = largest_gap(engine, vocabulary, packing=True)
    except Exception as error:
        if may_heal(error):
            raise
        engine.empty_partition_cache()  # of what ZeRO-3 had gathered when it failed
        return f"it fails on them: {last_line(error)}"
    if gap <= limit:
        return None
    return f"a token's loss differs by {gap:.2g} nats from that of its record alone"


def padded(config: Config) -> Config:
    """As many records in a micro-batch as a pack has room for."""
    batch = config.batch
    records = max(1, batch.pack_tokens // batch.seq_len)
    update = {"packing": False, "micro_batch_size": records}
    return config.model_copy(update={"batch": batch.model_copy(update=update)})


@torch.no_grad()
def largest_gap(engine: Any, vocabulary: int, *, packing: bool) -> float:
    """Of a token's loss to transformers' own, each record alone, in nats."""
    engine.eval()
    records, count = random_records(vocabulary), len(LENGTHS)
    batch = (pack if packing else pad)(records, np.arange(count)).to(engine.device)
    found = token_nll(engine, batch, batch.scored)
    wanted = torch.cat([alone(engine, records, index) for index in range(count)])
    engine.train()
    return float((found - wanted).abs().max().nan_to_num(torch.inf))


def random_records(vocabulary: int) -> TokenDataset:
    lengths = np.array(LENGTHS)
    ids = np.random.default_rng(0).integers(0, vocabulary, lengths.sum()).astype(np.int32)
    mask = np.ones(len(ids), dtype=np.bool_)
    source = np.zeros(len(lengths), np.uint16)
    return TokenDataset(ids, mask, np.cumsum(lengths) - lengths, lengths, lengths, source)


def alone(engine: Any, records: TokenDataset, index: int) -> Tensor:
    """-log P of every token but the first, by transformers' own forward and attention, fp32."""
    ids = torch.from_numpy(records.tokens(index).astype(np.int64))[None].to(engine.device)
    with own_attention(inner(engine)):
        logits = engine(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")


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
