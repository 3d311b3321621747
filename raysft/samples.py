"""What the finished model says to held-out records, and its model card."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.data.formats import Message
from raysft.generate import answer, load, write_recipe
from raysft.train.metrics import Emit

MAX_NEW_TOKENS = 256


def finish_model(
    config: Config, model_dir: Path, heldout: Sequence[list[Message]], emit: Emit
) -> dict[str, Any]:
    """Write recipe and card into the exported folder, then load it and let it answer.

    Answering from the folder, not from the engine, shows that what was exported is what was
    trained. Returns `exact_match`: the share of held-out answers equal to their reference.
    """
    write_recipe(model_dir, config.data.template)
    write_card(config, model_dir)
    count = max(config.run.samples, config.eval.exact_match_records)
    asked = heldout[:count]
    if not asked:
        return {"exact_match": None, "exact_match_records": 0}
    started = time.monotonic()
    model, tokenizer = load(str(model_dir))
    prompts = [messages[0].content for messages in asked]
    references = [messages[-1].content.strip() for messages in asked]
    longest = max(len(tokenizer(text)["input_ids"]) for text in references)
    answers = answer(
        model, tokenizer, prompts, config.data.template, min(longest + 8, MAX_NEW_TOKENS)
    )
    for index in range(min(config.run.samples, len(asked))):
        emit(
            {
                "event": "sample",
                "instruction": prompts[index],
                "reference": references[index],
                "answer": answers[index].strip(),
            }
        )
    checked = min(config.eval.exact_match_records, len(asked))
    hits = [a.strip() == r for a, r in zip(answers[:checked], references[:checked], strict=True)]
    return {
        "exact_match": sum(hits) / checked if checked else None,
        "exact_match_records": checked,
        "answer_time_s": round(time.monotonic() - started, 2),
    }


def write_card(config: Config, model_dir: Path) -> None:
    base = config.model.path if config.model.init == "pretrained" else "none (from scratch)"
    (model_dir / "README.md").write_text(
        f"""# {config.run.name}

Trained by raysft: supervised fine-tuning with the loss on {
            "response tokens only" if config.data.mask_prompt else "all tokens"
        }.

| | |
|---|---|
| base model | {base} |
| data | {config.data.path} |
| prompt template | {config.data.template} |
| sequence length | {config.batch.seq_len} tokens |
| learning rate | {config.optim.lr:g}, {config.optim.name} |
| precision | {config.engine.precision} |

Losses, hardware and versions are in the run's `summary.json`. Ask it with
`raysft generate FOLDER "instruction"`, or load it with `AutoModelForCausalLM.from_pretrained`.
"""
    )
