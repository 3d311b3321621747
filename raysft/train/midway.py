"""What a model answers while it is trained: by a plain copy of it, which is gone afterwards."""

from typing import Any

import torch
import torch.distributed as dist

from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset
from raysft.data.template import install_template
from raysft.model.answers import answered, judged, questions, share_of_answers
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.train.twin import plain_copy


def answer_midway(
    config: Config, engine: Any, tokenizer: Any, heldout: TokenDataset, step: int, emit: Emit
) -> dict[str, float]:
    """`exact_match` on held-out records, as the finished model will be asked; some answers are told
    as samples of this step. Every rank must call it, and holds the whole model for as long."""
    from transformers import GenerationConfig

    asked = questions(heldout, max(config.run.samples, config.eval.exact_match_records))
    if not asked:
        return {}
    twin = plain_copy(engine, "sdpa" if engine.module._supports_sdpa else "eager")
    twin.generation_config = GenerationConfig()
    template = install_template(tokenizer, "auto")
    with torch.inference_mode():
        share = share_of_answers(
            asked, lambda some, longest: answered(twin, template, some, longest),
            dist.get_rank(), dist.get_world_size(),
        )  # fmt: skip
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, share)
    by_number = {index: one for some in shares for index, one in some.items()}
    found = [by_number[index] for index in range(len(asked))]
    told = judged(found, config, lambda event: emit(at_step(event, step)))
    return {"exact_match": told["exact_match"]} if told["exact_match_records"] else {}


def at_step(event: events.Event, step: int) -> events.Event:
    assert isinstance(event, events.Sample)
    return events.Sample(event.instruction, event.reference, event.answer, step)
