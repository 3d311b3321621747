"""A config as a run of preference pairs computes it."""

from typing import TYPE_CHECKING

from raysft.errors import UserError

if TYPE_CHECKING:
    from raysft.config.schema import Config


def for_pairs(config: "Config") -> "Config":
    """Packs have room for both halves of a pair, and nothing is dropped out.

    Raises UserError for what does not go with pairs.
    """
    batch, room = config.batch, 2 * config.batch.seq_len
    if weight := config.data.prompt_loss_weight:
        raise UserError(
            f"data.prompt_loss_weight {weight:g} trains prompts, which tell no two answers apart"
        )
    if config.model.dropout:
        raise UserError(
            f"model.dropout {config.model.dropout:g} would give the same answer other "
            "probabilities each time: leave it out, pairs are compared without dropout"
        )
    tokens = batch.tokens_per_micro_batch
    if batch.packing and isinstance(tokens, int) and tokens < room:
        raise UserError(
            f"batch.tokens_per_micro_batch {tokens} is less than {room} = 2 x batch.seq_len: both "
            "halves of a pair must fit into a pack"
        )
    return with_room(config)


def as_records(config: "Config") -> "Config":
    """A run of pairs as arithmetic sees it: twice as many single records."""
    config = for_pairs(config)
    batch = config.batch
    doubled = {
        "global_batch_size": 2 * batch.global_batch_size,
        "micro_batch_size": 2 * batch.micro_batch_size,
    }
    return config.model_copy(update={"batch": batch.model_copy(update=doubled)})


def with_room(config: "Config") -> "Config":
    """As `for_pairs`, of a config that is sound: once "auto" is chosen too, which knows of single
    records."""
    batch, room = config.batch, 2 * config.batch.seq_len
    tokens = batch.tokens_per_micro_batch
    if tokens is None:
        tokens = batch.micro_batch_size * room
    elif isinstance(tokens, int):
        tokens = max(tokens, room)
    parts = {
        "batch": batch.model_copy(update={"tokens_per_micro_batch": tokens}),
        "model": config.model.model_copy(update={"dropout": 0.0}),
    }
    return config.model_copy(update=parts)
