"""The prompts of training records, to be answered by a model and compared with their answers."""

from collections import Counter
from typing import NamedTuple

from raysft.config.schema import Config
from raysft.data.pipeline import parse
from raysft.data.recipe import limited, make_recipe
from raysft.data.sources import sources
from raysft.data.template import Template, prompt_segments
from raysft.data.tokenize import encode_prompt
from raysft.data.turns import Conversation, NothingToLearn, RecordError
from raysft.errors import UserError


class Prompt(NamedTuple):
    turns: Conversation  # all before the last answer
    reference: str  # the record's own answer
    ids: list[int]  # what to generate from


def read_prompts(config: Config, template: Template) -> tuple[list[Prompt], Counter[str]]:
    """Of every conversation of `data.path`, and how many were left out, by reason.

    Raises UserError: unreadable data, a bad record where `on_bad_record` is "error", or nothing
    left.
    """
    parts = sources(config.data, config.data.path)
    recipe = make_recipe(config, parts, template)
    found: list[Prompt] = []
    dropped: Counter[str] = Counter()
    for chunk in limited(parts, recipe, config.run.seed, config.data.max_records):
        for number, value in zip(chunk.numbers, chunk.values, strict=True):
            try:
                drafts = parse(value, recipe, chunk.source)
                found += [prompt_of(draft.conversation, template) for draft in drafts]
            except NothingToLearn as error:
                dropped[str(error)] += 1
            except RecordError as error:
                if config.data.on_bad_record == "error":
                    raise UserError(f"{chunk.place} {number}: {error}") from None
                dropped[error.reason] += 1
    fitting = [prompt for prompt in found if len(prompt.ids) < config.batch.seq_len]
    if len(fitting) < len(found):
        dropped["the prompt fills batch.seq_len"] = len(found) - len(fitting)
    if not fitting:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
        raise UserError(f"data.path: no prompt is left to answer ({reasons})")
    return fitting, dropped


def prompt_of(conversation: Conversation, template: Template) -> Prompt:
    """Raises NothingToLearn where there is no prompt that plain turns can hold."""
    last = max((i for i, m in enumerate(conversation) if m.role == "assistant"), default=0)
    turns = conversation[:last]
    if not turns:
        raise NothingToLearn("no prompt before the answer")
    if any(m.role not in ("system", "user", "assistant") or m.calls for m in turns):
        raise NothingToLearn("its prompt has tools")
    ids = encode_prompt(template, prompt_segments(turns, template))
    return Prompt(turns, conversation[last].content, ids)
