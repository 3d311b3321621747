"""[run], [checkpoint], [eval], [log]: how long a run is, what it keeps, and what it reports."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from raysft.config.section import (
    Count,
    CountOrZero,
    Name,
    Place,
    PositiveFloat,
    Records,
    RecordsOrZero,
    Section,
    Steps,
    StepsOrZero,
    Unit,
)


def hub_name(value: str) -> str:
    """Raises ValueError for what the hub does not take as the name of a repository."""
    part = r"\w(?:[\w.-]*\w)?"
    if not re.fullmatch(rf"(?:{part}/)?{part}", value, re.ASCII) or (
        len(value) > 96 or ".." in value or "--" in value or value.endswith(".git")
    ):
        raise ValueError(
            f"{value!r} is no name on the hub: OWNER/NAME or NAME, of up to 96 letters, digits and "
            "single . _ -, with a letter or digit at both ends"
        )
    return value


HubName = Annotated[str, AfterValidator(hub_name)]


def project_name(value: str) -> str:
    """Raises ValueError for what Weights & Biases does not take as the name of a project."""
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", value) or value != value.strip():
        raise ValueError(
            f"{value!r} is no name of a project: up to 128 characters, none of them one of "
            "/ \\ # ? % :. Whose project it is, WANDB_ENTITY of the environment tells"
        )
    return value


def experiment_name(value: str) -> str:
    """Raises ValueError for an empty one."""
    if not value.strip() or value != value.strip():
        raise ValueError(f"{value!r} is no name of an experiment")
    return value


Project = Annotated[str, AfterValidator(project_name)]
Experiment = Annotated[str, AfterValidator(experiment_name)]


class Run(Section):
    """The run's name, folder, seed and length."""

    name: Name | None = None
    """Name of the run's folder in `storage`: up to 100 letters, digits and `. _ - + = @`. `--name`
    overrides it. When absent, it is made of the name of the config's file, preset or run and the
    UTC time."""
    storage: Place = "runs"
    """Folder in which every run gets a folder of its own; not a URI. On a cluster it must be an
    absolute path that all nodes share."""
    seed: CountOrZero = 0
    """Seeds everything random: initial weights, dropout, the held-out split, the order of records,
    the demo records, and the draws of a search."""
    max_steps: Steps | None = None
    """Length of the run. When absent, `epochs` decides."""
    epochs: Annotated[PositiveFloat, Unit("epochs")] = 1.0
    """Length of the run in passes over the training records, rounded up to whole steps. Ignored
    when `max_steps` is set."""
    samples: RecordsOrZero = 3
    """Held-out records that the trained model answers at the end of the run; each answer is shown
    beside its reference."""
    push_to_hub: HubName | None = None
    """Repository of the Hugging Face hub, `OWNER/NAME` or `NAME`, to which the model is uploaded at
    the end of the run, with the token and the `HF_ENDPOINT` of the environment. An upload that
    fails is a warning."""
    push_private: bool = False
    """Whether a repository that the upload makes is private."""
    license: str | None = None
    """What the model card says of the license, such as `apache-2.0`. When absent, what the card of
    the base model says, or nothing."""

    @model_validator(mode="after")
    def check_place(self) -> "Run":
        if "://" in self.storage:
            raise ValueError("storage is a folder on this machine or on a file system nodes share")
        return self


class Checkpoint(Section):
    """How often the training state is saved. A run goes on from its newest checkpoint after
    losing workers, or with `--resume`."""

    every_steps: StepsOrZero = 500
    """Steps between checkpoints; the last step gets one too. 0 turns checkpoints off, and a run
    that loses its workers then starts over."""
    keep: Annotated[Count, Unit("checkpoints")] = 2
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool | Literal["exact_match"] = False
    """`model/` is that of the evaluation with the lowest held-out loss, or of the look (see
    `eval.generate_every_steps`) with the highest exact match, and not the last one: it is written
    whenever there is a better one."""


class Eval(Section):
    """When the loss on the held-out records is computed, and how many of them there are."""

    every_steps: StepsOrZero = 100
    """Steps between evaluations; there is also one before the first step and one after the last. 0
    leaves only those two."""
    patience: Annotated[Count, Unit("evaluations")] | None = None
    """The run ends after so many evaluations in a row without a lower held-out loss than before
    them. When absent, it takes all its steps."""
    max_records: Records = 500
    """Most records held out, whether split off by `data.eval_fraction` or read from the start of
    `data.eval_path`."""
    micro_batch_size: Records | None = None
    """Records in one forward pass of one worker during evaluation. Used only when `batch.packing`
    is false. When absent, `batch.micro_batch_size`."""
    exact_match_records: RecordsOrZero = 0
    """Held-out records that the trained model answers at the end of the run; the summary reports
    the share of answers equal to their reference."""
    generate_every_steps: StepsOrZero = 0
    """Steps between looks at what the model answers while it trains: exact match on
    `exact_match_records`, and `run.samples` answers to `samples.jsonl`, which the report sets side
    by side. Every worker holds a copy of the whole model for as long. 0: at the end only."""


class Log(Section):
    """What a run records while it trains."""

    every_steps: Steps = 10
    """Steps between lines of training metrics; the first step, the last one and every checkpoint
    get a line too. On GPUs, requests to stop or to save a checkpoint are noticed only at multiples
    of it."""
    tensorboard: bool = True
    """Also write the metrics as TensorBoard events, to `tensorboard/` in the run's folder."""
    wandb: Project | None = None
    """Also log to Weights & Biases, to this project: metrics, config, and the report at the end.
    Needs `pip install 'raysft[wandb]'`; key and mode are those of the environment, such as
    `WANDB_API_KEY` and `WANDB_MODE=offline`."""
    mlflow: Experiment | None = None
    """Also log to MLflow, to this experiment: metrics, config, and the report at the end. Needs
    `pip install 'raysft[mlflow]'`; the address is `MLFLOW_TRACKING_URI` of the environment."""
    profile_steps: StepsOrZero = 0
    """Steps to profile on the first worker, from the second step on: a table of where their time
    went, and a trace in `profile/`. 0 profiles none."""
