"""The tokenised set: flat arrays made once a run, and a sampler that is a function of the step."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.config.schema import Config, Data
from raysft.data.formats import FORMATS, Message, RecordError, detect_format, to_messages
from raysft.data.read import read_records
from raysft.data.template import TEMPLATES, Segment, to_segments
from raysft.data.tokenize import Example, encode
from raysft.errors import UserError

Indices = NDArray[np.int64]
CHUNK = 1000  # records encoded at a time: enough to keep the tokenizer's threads busy


@dataclass(frozen=True)
class TokenDataset:
    """R records as flat arrays, which Ray shares with every worker of a node without a copy."""

    input_ids: NDArray[np.int32]  # [sum of lengths]
    loss_mask: NDArray[np.bool_]  # [sum of lengths]
    offsets: NDArray[np.int64]  # [R + 1]; record r is offsets[r] to offsets[r + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each record, [R]."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Trained predictions of each record, [R]. Nothing predicts a record's first token."""
        mask = self.loss_mask.copy()
        mask[self.offsets[:-1]] = False
        return np.add.reduceat(mask, self.offsets[:-1], dtype=np.int64)

    def tokens(self, index: int) -> NDArray[np.int32]:
        return self.input_ids[self.offsets[index] : self.offsets[index + 1]]

    def mask(self, index: int) -> NDArray[np.bool_]:
        return self.loss_mask[self.offsets[index] : self.offsets[index + 1]]


@dataclass
class DataReport:
    """What became of the records: everything a person should be told, as counts."""

    format: str = ""
    num_read: int = 0
    num_records: int = 0  # kept for training
    num_eval_records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> place
    prompts_truncated: int = 0
    responses_truncated: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, where)

    def as_event(self) -> dict[str, Any]:
        return asdict(self) | {"dropped": dict(self.dropped), "num_dropped": self.num_dropped}


class Prepared(NamedTuple):
    train: TokenDataset
    heldout: TokenDataset
    heldout_messages: list[list[Message]]  # the same records as text, for samples
    report: DataReport


def prepare(config: Config, tokenizer: Any) -> Prepared:
    """Read, split and tokenise what `config.data` names.

    Raises UserError: unreadable data, a bad record where `on_bad_record` is "error", nothing or
    too little left.
    """
    data, report = config.data, DataReport()
    limit = config.eval.max_records
    messages = read_messages(data, data.path, config.run.seed, report)
    if data.eval_path is not None:
        heldout = read_messages(data, data.eval_path, config.run.seed, report)[:limit]
    else:
        messages, heldout = split(messages, data.eval_fraction, limit, config.run.seed)
    train, _ = tokenise(messages, tokenizer, config, report, mask_prompt=data.mask_prompt)
    # Always the response alone, so that held-out losses compare whatever was trained on.
    evaluated, kept = tokenise(heldout, tokenizer, config, report, mask_prompt=True)
    report.num_records, report.num_eval_records = len(train), len(evaluated)
    report.tokens = int(train.offsets[-1])
    report.supervised_tokens = int(train.supervised.sum())
    check_enough(report)
    return Prepared(train, evaluated, [heldout[index] for index in kept], report)


def read_messages(
    data: Data, path: str | tuple[str, ...], seed: int, report: DataReport
) -> list[list[Message]]:
    """Raises UserError at the first bad record unless `data.on_bad_record` is "skip"."""
    result: list[list[Message]] = []
    name: str = "" if data.format == "auto" else data.format
    for record in read_records(path, split=data.split, seed=seed):
        if data.max_records is not None and len(result) == data.max_records:
            break
        report.num_read += 1
        try:
            if record.error:
                raise RecordError(record.error)
            if not name and isinstance(record.value, dict):
                name = detect_format(record.value)
            result.append(to_messages(record.value, FORMATS[name or "alpaca"]))
        except RecordError as error:
            if data.on_bad_record == "error" and str(error) != "the response is empty":
                raise UserError(
                    f"{record.where}: {error}\n"
                    'Mend it, or leave such records out with data.on_bad_record = "skip".'
                ) from None
            report.drop("malformed" if record.error else str(error), record.where)
    if not report.num_read:
        raise UserError(f"data.path: {path} holds no records")
    report.format = name
    return result


def split(
    messages: list[list[Message]], fraction: float, limit: int, seed: int
) -> tuple[list[list[Message]], list[list[Message]]]:
    """Train and held-out records: a random share drawn from the seed, at most `limit`."""
    count = min(limit, int(len(messages) * fraction))
    chosen = set(np.random.default_rng(seed).permutation(len(messages))[:count].tolist())
    train = [m for index, m in enumerate(messages) if index not in chosen]
    return train, [messages[index] for index in sorted(chosen)]


def tokenise(
    messages: Sequence[list[Message]],
    tokenizer: Any,
    config: Config,
    report: DataReport,
    *,
    mask_prompt: bool,
) -> tuple[TokenDataset, list[int]]:
    """The dataset and the positions in `messages` of the records that are in it."""
    template = TEMPLATES[config.data.template]
    kept: list[int] = []
    examples: list[Example] = []
    for begin in range(0, len(messages), CHUNK):
        chunk: list[list[Segment]] = [
            to_segments(m, template) for m in messages[begin : begin + CHUNK]
        ]
        encoded = encode(tokenizer, chunk, seq_len=config.batch.seq_len, mask_prompt=mask_prompt)
        for index, example in enumerate(encoded, start=begin):
            cut = example.prompt_cut + example.response_cut
            if cut and not config.data.truncate:
                report.drop("longer than batch.seq_len", f"record {index + 1}")
            elif not example.loss_mask[1:].any():
                report.drop("no supervised token within batch.seq_len", f"record {index + 1}")
            else:
                report.prompts_truncated += example.prompt_cut > 0
                report.responses_truncated += example.response_cut > 0
                kept.append(index)
                examples.append(example)
    return flatten(examples), kept


def flatten(examples: Iterable[Example]) -> TokenDataset:
    examples = list(examples)
    offsets = np.cumsum([0, *(len(e.input_ids) for e in examples)], dtype=np.int64)
    if not examples:
        return TokenDataset(np.zeros(0, np.int32), np.zeros(0, np.bool_), offsets)
    return TokenDataset(
        np.concatenate([e.input_ids for e in examples]),
        np.concatenate([e.loss_mask for e in examples]),
        offsets,
    )


def check_enough(report: DataReport) -> None:
    if not report.num_records:
        raise UserError(
            f"no training record is left of {report.num_read} read: dropped {dict(report.dropped)}"
        )
    if report.num_dropped > report.num_read / 2:
        raise UserError(
            f"{report.num_dropped} of {report.num_read} records were dropped "
            f"({dict(report.dropped)}): this is more than half, so the data or batch.seq_len is "
            "probably not what you meant"
        )


def global_batch(num_records: int, batch_size: int, seed: int, step: int) -> Indices:
    """Record indices [batch_size] of optimizer step `step`, counted from 0.

    Every epoch is a permutation drawn from (seed, epoch), and batches run on over its end: each
    record is seen equally often, and the position after a restart is just the step.
    """
    first = step * batch_size
    epochs = range(first // num_records, (first + batch_size - 1) // num_records + 1)
    order = np.concatenate(
        [np.random.default_rng([seed, epoch]).permutation(num_records) for epoch in epochs]
    )
    begin = first - epochs[0] * num_records
    return order[begin : begin + batch_size]
