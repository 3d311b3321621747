"""What the sections of the config are made of."""

import re
from dataclasses import dataclass
from os.path import expanduser
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Unit:
    """What a number counts or is a share of. For the page of keys only: it validates nothing."""

    words: str


# Chosen by the arithmetic of `raysft estimate` for the device that is there: see verbs.settle.
Auto = Literal["auto"]


def count_or_auto(value: Any) -> Any:
    """Raises ValueError that names both forms, where pydantic would say what is wrong with each."""
    if value == "auto" or value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(f'{value!r} is neither a number from 1 on nor "auto"')


def names_or_auto(value: Any) -> Any:
    """Raises ValueError that names both forms."""
    named = isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)
    if value == "auto":
        return value
    if named and value:
        return tuple(value)
    raise ValueError(f'{value!r} is neither a list of names nor "auto"')


def run_name(value: str) -> str:
    """Raises ValueError for what would not be one folder in run.storage, or no id of a job."""
    if not re.fullmatch(r"\w[\w.+=@-]{0,99}", value):
        raise ValueError(
            f"{value!r} is no name for a run: up to 100 letters, digits and . _ - + = @, the first "
            "of them a letter, a digit or _"
        )
    return value


Name = Annotated[str, AfterValidator(run_name)]
Place = Annotated[str, AfterValidator(expanduser)]  # where ~ is the home folder

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
FloatOrZero = Annotated[float, Field(ge=0.0)]

Steps = Annotated[Count, Unit("optimizer steps")]
StepsOrZero = Annotated[CountOrZero, Unit("optimizer steps")]
Records = Annotated[Count, Unit("records")]
RecordsOrZero = Annotated[CountOrZero, Unit("records")]
Tokens = Annotated[Count, Unit("tokens")]
Precision = Literal["bf16", "fp16", "fp32"]
SeqLen = Annotated[int, Field(ge=8), Unit("tokens")]


class Section(BaseModel):
    """A table of the TOML file. The docstring below a field is its meaning on the page of keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
