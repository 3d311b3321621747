"""The training and held-out sets of a run, and the order in which records are seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.config.data import Source
from raysft.config.schema import Config
from raysft.data import cache
from raysft.data.cache import Counts, TokenisedSet
from raysft.data.detect import check_all
from raysft.data.pairs import LEFT_OVER
from raysft.data.pipeline import process_all
from raysft.data.recipe import limited, make_recipe, mappings
from raysft.data.sources import file_names, identity, sources, total_bytes
from raysft.data.template import Template
from raysft.errors import UserError

Indices = NDArray[np.int64]
PARALLEL_BYTES = 32 << 20  # smaller sources are tokenised before Ray would have started


@dataclass(frozen=True)
class TokenDataset:
    """R records of flat arrays, which Ray shares with every worker of a node without a copy."""

    input_ids: NDArray[np.int32]  # [tokens], of these records and perhaps of others
    loss_mask: NDArray[np.bool_]  # [tokens], true in trained answers
    starts: NDArray[np.int64]  # [R], where each record begins in the arrays
    lengths: NDArray[np.int64]  # [R], in tokens
    answers: NDArray[np.int64]  # [R], predictions of tokens of its trained answers
    source: NDArray[np.uint16]  # [R], index in the mixture
    weights: tuple[float, ...] = (1.0,)  # of each source: how often an epoch sees a record
    prompt_weight: float = 0.0  # in the loss, of a token outside the answers; those have 1
    # Of pairs, whose two conversations stand one after the other as one record.
    chosen: NDArray[np.int64] | None = None  # [R], tokens of the first, which is the better one
    margins: NDArray[np.float32] | None = None  # [R], by how much, as the records' scores say
    reference: NDArray[np.float64] | None = None  # [R, 2], log P of both answers: see DPO
    drawn: bool = False  # a model's own answers, whose batches tell the place of each token
    asked: Any = None  # the records as texts where they are prompts: data.asked.Asked

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Trained predictions [R]. Nothing predicts a record's first token."""
        return self.lengths - 1 if self.prompt_weight else self.answers

    @property
    def loss_weight(self) -> NDArray[np.float64]:
        """Sum of the weights of the predictions [R]: what each adds to the loss's divisor."""
        return self.answers + self.prompt_weight * (self.lengths - 1 - self.answers)

    @property
    def parts(self) -> NDArray[np.int64]:
        """[R, 1], or of pairs [R, 2]: the lengths of what attends to itself alone."""
        if self.chosen is None:
            return self.lengths[:, None]
        return np.stack([self.chosen, self.lengths - self.chosen], axis=1)

    def tokens(self, index: int) -> NDArray[np.int32]:
        start = self.starts[index]
        return self.input_ids[start : start + self.lengths[index]]

    def mask(self, index: int) -> NDArray[np.bool_]:
        start = self.starts[index]
        return self.loss_mask[start : start + self.lengths[index]]


class Prepared(NamedTuple):
    train: TokenDataset
    heldout: TokenDataset
    tokenised: TokenisedSet  # what data.path holds, for the audit
    kept: Indices  # the records of it that are trained on
    heldout_counts: Counts | None  # what was read from data.eval_path
    heldout_keys: NDArray[np.uint64]
    num_duplicates_dropped: int


def prepare(
    config: Config,
    template: Template,
    start_ray: Callable[[], None] | None = None,
    *,
    pairs: bool | None = False,
) -> Prepared:
    """Read, tokenise and split what `config.data` names. `start_ray` is called for large data.

    pairs: whether the records are to be preference pairs; None takes what they are.

    Raises UserError: unreadable data, a bad record where `on_bad_record` is "error", records of
    the other kind, nothing or too little left.
    """
    data, seed = config.data, config.run.seed
    limit = config.eval.max_records
    tokenised = tokenised_set(config, data.path, template, start_ray, pairs=pairs)
    kept = np.arange(len(tokenised.records))
    if data.drop_duplicates:
        kept = np.sort(np.unique(tokenised.records["key"], return_index=True)[1])
    num_duplicates = len(tokenised.records) - len(kept)
    if data.eval_path is not None:
        of_pairs = tokenised.counts.pairs
        other = tokenised_set(config, data.eval_path, template, start_ray, pairs=of_pairs)
        chosen = np.arange(min(limit, len(other.records)))
    else:
        other = tokenised
        kept, chosen = split(kept, data.eval_fraction, limit, seed)
    check_enough(tokenised.counts, len(kept))
    weights = tuple(source.weight for source in sources(data, data.path))
    return Prepared(
        train=select(tokenised, kept, weights=weights, prompt_weight=data.prompt_loss_weight),
        # Always the response alone, so that held-out losses compare whatever was trained on.
        heldout=compact(select(other, chosen)),
        tokenised=tokenised,
        kept=kept,
        heldout_counts=None if other is tokenised else other.counts,
        heldout_keys=np.asarray(other.records["key"][chosen]),
        num_duplicates_dropped=num_duplicates,
    )


def tokenised_set(
    config: Config,
    path: str | tuple[str | Source, ...],
    template: Template,
    start_ray: Callable[[], None] | None = None,
    *,
    pairs: bool | None = False,
) -> TokenisedSet:
    """From the cache, or read and tokenised into it. pairs: as in `prepare`."""
    data, seed = config.data, config.run.seed
    parts = sources(data, path)
    key = cache.key_for(
        [(identity(part, seed), part.format, part.fields) for part in parts],
        [tokenizer_identity(template.tokenizer), template.source, template.tools_source],
        [config.batch.seq_len, data.truncate, data.train_on, data.max_records, pairs],
    )
    skip_bad = data.on_bad_record == "skip"
    names = tuple(name for part in parts for name in file_names(part))
    found = cache.load(key, names)
    if found is None:
        recipe = make_recipe(config, parts, template, pairs=pairs)
        parallel = start_ray is not None and sum(map(total_bytes, parts)) > PARALLEL_BYTES
        if parallel and start_ray is not None:
            start_ray()
        chunks = limited(parts, recipe, seed, data.max_records)
        done = process_all(chunks, recipe, parallel=parallel)
        found = cache.store(key, done, recipe.formats, names, skip_bad=skip_bad)
    if not skip_bad:
        found.counts.require_sound()
    check_all(mappings(parts, data), found.counts.mapped, parts)
    return found


def tokenizer_identity(tokenizer: Any) -> str:
    return str(tokenizer.backend_tokenizer.to_str()) + repr(tokenizer.special_tokens_map)


def split(kept: Indices, fraction: float, limit: int, seed: int) -> tuple[Indices, Indices]:
    """Train and held-out records: a random share drawn from the seed, at most `limit`."""
    count = min(limit, int(len(kept) * fraction))
    chosen = np.random.default_rng(seed).permutation(len(kept))[:count]
    is_heldout = np.zeros(len(kept), dtype=np.bool_)
    is_heldout[chosen] = True
    return kept[~is_heldout], kept[is_heldout]


def select(
    tokenised: TokenisedSet,
    chosen: Indices,
    *,
    weights: tuple[float, ...] = (1.0,),
    prompt_weight: float = 0.0,
) -> TokenDataset:
    """The chosen records, over the same flat arrays."""
    lengths = tokenised.records["length"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    return TokenDataset(
        tokenised.input_ids,
        tokenised.loss_mask,
        starts[chosen],
        lengths[chosen],
        tokenised.records["supervised"][chosen].astype(np.int64),
        np.asarray(tokenised.records["source"][chosen]),
        weights,
        prompt_weight,
        **of_pairs(tokenised, chosen),
    )


def of_pairs(tokenised: TokenisedSet, chosen: Indices) -> dict[str, Any]:
    if not tokenised.counts.pairs:
        return {}
    rows = tokenised.records[chosen]
    return {
        "chosen": rows["chosen"].astype(np.int64),
        "margins": np.asarray(rows["margin"]),
    }


def compact(dataset: TokenDataset) -> TokenDataset:
    """The same records over arrays that hold nothing else."""
    spans = [np.arange(s, s + n) for s, n in zip(dataset.starts, dataset.lengths, strict=True)]
    places = np.concatenate([np.zeros(0, np.int64), *spans])
    return replace(
        dataset,
        input_ids=np.asarray(dataset.input_ids[places]),
        loss_mask=np.asarray(dataset.loss_mask[places]),
        starts=np.cumsum(dataset.lengths) - dataset.lengths,
    )


def check_enough(counts: Counts, num_records: int) -> None:
    dropped = sum(counts.dropped.values())
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts.dropped.items())
    if not num_records:
        raise UserError(
            f"no training record is left of {counts.num_read:,} read; dropped: {reasons or 'none'}"
        )
    if dropped - counts.dropped[LEFT_OVER] > counts.num_read / 2:
        raise UserError(
            f"{dropped:,} of {counts.num_read:,} records were dropped ({reasons}): this is more "
            "than half, so the data or batch.seq_len is probably not what you meant"
        )


def epoch_order(dataset: TokenDataset, seed: int, epoch: int) -> Indices:
    """Record indices in the order of one epoch, drawn from (seed, epoch).

    A source of weight w gives each of its records floor(w) times, and a random share of them once
    more, so every epoch has the same number of records.
    """
    random = np.random.default_rng([seed, epoch])
    if set(dataset.weights) == {1.0}:
        return random.permutation(len(dataset))
    seen = []
    for index, weight in enumerate(dataset.weights):
        records = np.flatnonzero(dataset.source == index)
        whole, rest = divmod(weight, 1)
        seen += [records] * int(whole)
        seen.append(random.permutation(records)[: round(rest * len(records))])
    return random.permutation(np.concatenate(seen))


def epoch_length(dataset: TokenDataset) -> int:
    """Records that one epoch sees."""
    return len(epoch_order(dataset, seed=0, epoch=0))


def global_batch(
    order: Callable[[int], Indices], num_records: int, batch_size: int, step: int
) -> Indices:
    """Record indices [batch_size] of optimizer step `step`, counted from 0.

    `order` gives the `num_records` records of an epoch. Batches run on over its end, so the
    position after a restart is just the step.
    """
    first = step * batch_size
    epochs = range(first // num_records, (first + batch_size - 1) // num_records + 1)
    records = np.concatenate([order(epoch) for epoch in epochs])
    begin = first - epochs[0] * num_records
    return records[begin : begin + batch_size]
