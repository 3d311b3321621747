"""[run], [checkpoint], [eval], [log]: how long a run is, what it keeps, and what it says."""

from pydantic import model_validator

from raysft.config.section import Count, CountOrZero, PositiveFloat, Section


class Run(Section):
    name: str | None = None  # default: the config's name and the UTC time
    storage: str = "runs"
    seed: CountOrZero = 0
    max_steps: Count | None = None  # optimizer steps; when absent, `epochs` decides
    epochs: PositiveFloat = 1.0
    samples: CountOrZero = 3  # generated answers shown at the end

    @model_validator(mode="after")
    def check_place(self) -> "Run":
        if "://" in self.storage:
            raise ValueError("storage is a folder on this machine or on a file system nodes share")
        if self.name is not None and "/" in self.name:
            raise ValueError(f"name {self.name!r} holds a slash: the folder is run.storage")
        return self


class Checkpoint(Section):
    every_steps: CountOrZero = 500  # and after the last step; 0: no checkpoints at all
    keep: Count = 2


class Eval(Section):
    every_steps: CountOrZero = 100  # and before the first and after the last step; 0: only those
    max_records: Count = 500
    micro_batch_size: Count | None = None  # default: batch.micro_batch_size
    exact_match_records: CountOrZero = 0  # held-out records answered and compared at the end


class Log(Section):
    every_steps: Count = 10
    tensorboard: bool = True
    profile_steps: CountOrZero = 0  # steps of which to tell where the time went
