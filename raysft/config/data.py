"""[data]: the records to train on, and what is done with them."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from raysft.config.section import (
    Fraction,
    FractionBelowOne,
    Place,
    PositiveFloat,
    Records,
    Section,
    Unit,
)

DEMO = "demo"  # data.path and model.tokenizer: the instruction set and tokenizer built in
DEMO_VOCABULARY = 492  # tokens of that tokenizer

Format = Literal[
    "auto",
    "messages",
    "sharegpt",
    "self_instruct",
    "alpaca",
    "prompt_completion",
    "text",
    "preference",
    "labelled",
]


def iso_day(value: Any) -> Any:
    """A text such as "2026-01-31", or TOML's own date. Raises ValueError for other texts."""
    if isinstance(value, date):
        return value.isoformat()[:10]
    try:
        return value if value is None else date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no day such as 2026-01-31") from None


Day = Annotated[str, BeforeValidator(iso_day)]


class Fields(Section):
    """What the records call the fields of their format. A key that is absent stands for the field
    of its own name."""

    instruction: str | None = None
    """The task, in `alpaca` and `self_instruct`."""
    input: str | None = None
    """What the task is about, in `alpaca`; optional in the records. When absent, `input`, or
    `context` in records without it."""
    output: str | None = None
    """The answer, in `alpaca`. When absent, `output`, or `response`, `answer` or `completion` in
    records without it."""
    context: str | None = None
    """What the question is about, before it in the prompt, in `prompt_completion`; optional in the
    records."""
    choices: str | None = None
    """The choices of a question, in `alpaca` and `prompt_completion`; optional in the records."""
    system: str | None = None
    """A system prompt, in every format but `self_instruct` and `text`; optional in the records."""
    history: str | None = None
    """Earlier turns as a list of `[question, answer]`, in `alpaca`; optional in the records."""
    instances: str | None = None
    """A list of `input` and `output`, in `self_instruct`."""
    prompt: str | None = None
    """A text or a list of turns, in `prompt_completion`. When absent, `prompt`, or `question`,
    `query` or `input` in records without it."""
    completion: str | None = None
    """The answer to the prompt, in `prompt_completion` and `labelled`. When absent, `completion`,
    or `answer`, `response`, `output` or `answers` in records without it."""
    messages: str | None = None
    """A list of turns with `role` and `content`, in `messages`, or that list as JSON in a text."""
    conversations: str | None = None
    """A list of turns with `from` and `value`, in `sharegpt`."""
    tools: str | None = None
    """The functions the model may call, in every format but `self_instruct` and `text`; optional in
    the records. They go to the template, or into the system turn where it has no form for them."""
    text: str | None = None
    """A whole document, in `text`."""
    chosen: str | None = None
    """The better answer, or the whole conversation with it, in `preference`."""
    rejected: str | None = None
    """The worse answer, or the whole conversation with it, in `preference`."""
    margin: str | None = None
    """By how much the chosen answer is better, in `preference`; optional in the records."""
    score_chosen: str | None = None
    """What a judge gave the chosen answer, in `preference`; optional in the records. With that of
    the rejected one, a margin."""
    score_rejected: str | None = None
    """What a judge gave the rejected answer, in `preference`."""


class Source(Section):
    """One part of a mixture: a table in the list `data.path` or `data.eval_path`."""

    path: Place
    """Any one thing that `data.path` can name."""
    weight: Annotated[PositiveFloat, Unit("times per epoch")] = 1.0
    """How often an epoch sees each record of this part, on average: 0.5 shows a different half of
    them each time. Ignored in `data.eval_path`."""
    format: Format | None = None
    """When absent, `data.format`."""
    fields: Fields | None = None
    """When absent, `data.fields`."""
    subset: str | None = None
    """When absent, `data.subset`."""
    split: str | None = None
    """When absent, `data.split`."""
    revision: str | None = None
    """When absent, `data.revision`."""


class Data(Section):
    """The records to train on, how they become tokens, and which of them are held out."""

    path: Place | tuple[Place | Source, ...]
    """A JSON, JSONL, CSV, TSV, Parquet or Arrow file, a folder, zip file or glob of them, a URI
    such as `s3://bucket/set/*.jsonl`, a Hugging Face hub id, or `"demo"`, the built-in records. A
    list of these is a mixture."""
    format: Format = "auto"
    """Format of the records. `"auto"` tells it from the fields of the first readable record. The
    last two are of preference pairs: two answers a record, or single ones with a `label`."""
    fields: Fields = Fields()
    """Names of the records' fields where they differ from those of the format."""
    template: Place = "auto"
    """What turns a conversation into text: `"tokenizer"` (the tokenizer's own chat template),
    `"plain"`, `"alpaca"`, `"chatml"`, or a Jinja file. `"auto"` is the tokenizer's own if it has
    one, else `"plain"`."""
    date: Day | None = None
    """The day that a template writes which asks for today's, in training, in the exported template
    and in the prompts of `raysft generate`, as `2026-01-31`. When absent, the day on which the run
    is first started, which `run.json` keeps."""
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which answers of a conversation are trained: all of them, or only the last."""
    subset: str | None = None
    """Configuration of a hub dataset. When absent, its default one. Refused for files."""
    split: str = "train"
    """Split of a hub dataset, or of a folder or zip file where names tell splits, such as
    `test.jsonl` and `data/train-00000-of-00002.parquet`. Refused for a file or glob."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset. When absent, its main branch. Refused for files."""
    max_records: Records | None = None
    """Most records read from each part of `path` and of `eval_path`, counted from its start. When
    absent, all."""
    eval_fraction: Annotated[FractionBelowOne, Unit("of the records")] = 0.05
    """Share of the records held out at random, up to `eval.max_records`. 0 holds out none."""
    eval_path: Place | tuple[Place | Source, ...] | None = None
    """Where the held-out records come from, in the same form as `path`. When absent, they are split
    off by `eval_fraction`."""
    prompt_loss_weight: Fraction = 0.0
    """What a token outside the trained answers weighs in the training loss, where one of an answer
    weighs 1: 0 masks the prompts, 1 trains every token alike. The loss is the weighted sum over the
    sum of the weights. The held-out loss is always that of the answers. `mask_prompt`, the old
    spelling, is still read: `true` is 0, `false` is 1."""
    truncate: bool = True
    """Cut records longer than `batch.seq_len`: first the start of the prompt, as far as the first
    answer needs room, then the end of the record. `false` drops them."""
    drop_duplicates: bool = False
    """Of records in `path` with the same text, train on the first only."""
    on_bad_record: Literal["error", "skip"] = "error"
    """What a malformed record does: stop the run, naming file and line, or be counted and left
    out."""
