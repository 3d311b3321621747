"""Training records as prompts that a model answers itself, and what is needed to judge it."""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.data.record_prompts import Prompt, read_prompts
from raysft.data.template import Template
from raysft.errors import UserError

NO_ROOM = "the prompt leaves no room for ppo.max_new_tokens in batch.seq_len"
CUT = "the record's prompt was cut to batch.seq_len"


class Asked(NamedTuple):
    template: Template
    prompts: list[Prompt]  # of each record of the set


def as_prompts(
    config: Config, template: Template, records: TokenDataset
) -> tuple[TokenDataset, Counter[str]]:
    """Those of the records that can be asked, with their texts; and how many cannot, by reason.

    Records are found by the tokens of their prompts: data.path is read once more, because the
    tokens alone do not tell the turns. Raises UserError where none is left.
    """
    by_ids: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in read_prompts(config, template)[0]:
        by_ids.setdefault(tuple(prompt.ids), []).append(prompt)
    most = config.batch.seq_len - config.ppo.max_new_tokens
    kept, prompts, dropped = [], [], Counter[str]()
    for index in range(len(records)):
        ids, mask = records.tokens(index), records.mask(index)
        begin = int(np.flatnonzero(~mask)[-1]) + 1 if not mask.all() else 0
        found = by_ids.get(tuple(ids[:begin].tolist()))
        if found is None:
            dropped[CUT] += 1
        elif begin > most:
            dropped[NO_ROOM] += 1
        else:
            kept.append(index)
            prompts.append(chosen(found, template, ids[begin:].tolist()))
    if not kept:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
        raise UserError(f"data.path: no prompt is left to answer ({reasons})")
    columns = {name: getattr(records, name)[kept] for name in ("starts", "lengths", "answers")}
    asked = Asked(template, prompts)
    return replace(records, **columns, source=records.source[kept], asked=asked), dropped


def chosen(found: list[Prompt], template: Template, answer: list[int]) -> Prompt:
    """Of records that ask the same, the one with this answer."""
    if len(found) == 1:
        return found[0]
    text = str(template.tokenizer.decode(answer, skip_special_tokens=True)).strip()
    return next((one for one in found if one.reference.strip() == text), found[0])
