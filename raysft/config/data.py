"""[data]: the records to train on, and what is done with them."""

from typing import Annotated, Literal

from pydantic import Field

from raysft.config.section import Count, PositiveFloat, Section

DEMO = "demo"  # data.path and model.tokenizer: the instruction set and tokenizer built in
DEMO_VOCABULARY = 492  # tokens of that tokenizer

Format = Literal[
    "auto", "messages", "sharegpt", "self_instruct", "alpaca", "prompt_completion", "text"
]


class Fields(Section):
    """Names of a record's fields where they are not those that its format knows."""

    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = None
    history: str | None = None
    instances: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    conversations: str | None = None
    tools: str | None = None
    text: str | None = None


class Source(Section):
    """One part of a mixture, as a table of `data.path`. What is absent is taken from `data`."""

    path: str
    weight: PositiveFloat = 1.0  # how often an epoch sees each of its records, on average
    format: Format | None = None
    fields: Fields | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None


class Data(Section):
    # Files, folders, globs, URIs such as s3://, a hub id, or "demo"; one, or a list of them.
    path: str | tuple[str | Source, ...] = DEMO
    format: Format = "auto"
    fields: Fields = Fields()
    template: str = "auto"  # "tokenizer", "plain", "alpaca", "chatml" or a Jinja file
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    subset: str | None = None  # of a hub dataset, as are the next two
    split: str = "train"
    revision: str | None = None
    max_records: Count | None = None
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    eval_path: str | tuple[str | Source, ...] | None = None  # used instead of eval_fraction
    mask_prompt: bool = True  # false: the loss is on every token
    truncate: bool = True  # false: records longer than seq_len are dropped
    drop_duplicates: bool = False  # keep the first of equal records
    on_bad_record: Literal["error", "skip"] = "error"
