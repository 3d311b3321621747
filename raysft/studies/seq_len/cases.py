"""The cases of `bench seq-len`: lengths, how many sequences a step, and the config of each."""

from dataclasses import dataclass

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.errors import UserError

TABLES = ("sequences", "tokens")  # what every case of a table has an equal number of in a step


@dataclass(frozen=True)
class Case:
    seq_len: int
    sequences: int  # in one optimizer step
    tables: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.seq_len * self.sequences


def cases(config: Config) -> list[Case]:
    """Of both tables, shortest first; a case that is in both runs once.

    Equal sequences: batch.global_batch_size of them. Equal tokens: as many as those have at the
    longest length, as nearly as whole sequences and micro-batches allow.
    """
    lengths, batch = config.bench.seq_lens, config.batch
    count = batch.global_batch_size
    at_once = config.scaling.most * (1 if batch.tokens_per_micro_batch else batch.micro_batch_size)
    if count % at_once:
        raise UserError(
            f"batch.global_batch_size {count} is not a multiple of {at_once}, what all workers "
            "take at once: some of them would wait for others"
        )
    tokens = count * max(lengths)
    members: dict[tuple[int, int], list[str]] = {}
    for length in sorted(set(lengths)):
        near = max(1, round(tokens / length / at_once)) * at_once
        for table, sequences in zip(TABLES, (count, near), strict=True):
            members.setdefault((length, sequences), []).append(table)
    return [Case(*key, tuple(tables)) for key, tables in members.items()]


def longest(config: Config) -> Config:
    """The config at its longest case: what data is read for, and what the model must allow.

    Raises UserError when a model from scratch has no such positions.
    """
    shape, most = config.model.shape, max(config.bench.seq_lens)
    if config.model.init == "scratch" and shape and most > shape.n_positions:
        raise UserError(
            f"bench.seq_lens: {most} is past model.shape.n_positions {shape.n_positions}: leave it "
            "out, or give the model more positions"
        )
    room = config.batch.tokens_per_micro_batch
    if config.batch.packing and room and room != "auto" and most > room:
        raise UserError(
            f"bench.seq_lens: {most} is past batch.tokens_per_micro_batch {room}: raise it, or set "
            "it to none and batch.micro_batch_size in its place"
        )
    overrides = {"batch.seq_len": most}
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")


def case_config(config: Config, case: Case) -> Config:
    """The config of a run that does nothing but the steps of this case.

    A micro-batch has as many whole sequences as batch.tokens_per_micro_batch has room for, or where
    that is not set batch.micro_batch_size of them.
    """
    room = config.batch.tokens_per_micro_batch
    assert room != "auto"
    overrides = {
        "batch.seq_len": case.seq_len,
        "batch.global_batch_size": case.sequences,
        "batch.tokens_per_micro_batch": room - room % case.seq_len if room else None,
        "run.max_steps": config.bench.warmup_steps + config.bench.steps,
        "checkpoint.every_steps": 0,
        "eval.every_steps": 0,
        "log.every_steps": 1,
    }
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")
