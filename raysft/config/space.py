"""[tune.space]: which keys a search varies, and over what."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from raysft.config.section import PositiveFloat, Section

Value = float | int | str | bool
KINDS = ("uniform", "loguniform", "int", "choice", "grid")


class Domain(Section):
    """What a search draws the values of a key from: exactly one of these. `uniform` and
    `loguniform` round to four significant digits."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    uniform: tuple[float, float] | None = None
    """`[low, high]`: any number between them, all equally likely."""
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """`[low, high]`: any number between them, its logarithm uniformly distributed."""
    integer: tuple[int, int] | None = Field(default=None, alias="int")
    """`[low, high]`: any integer between them, both ends included."""
    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """One of the values listed. With `sampler = "grid"`, each of them."""
    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """Each of the values listed, in every combination with other keys. Only with
    `sampler = "grid"`."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def values(self) -> tuple[Any, ...]:
        """The two ends of a range, or all there are."""
        return next(iter(self.model_dump(exclude_none=True).values()))

    @model_validator(mode="after")
    def check_one(self) -> "Domain":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"name one of {', '.join(KINDS)}")
        if self.kind in ("uniform", "loguniform", "int") and not self.values[0] < self.values[1]:
            raise ValueError(f"{self.values[0]} is not below {self.values[1]}")
        return self


SPACE: Mapping[str, Domain] = {
    "optim.lr": Domain(loguniform=(1e-5, 1e-3)),
    "optim.max_grad_norm": Domain(choice=(0.3, 1.0, 3.0)),
    "schedule.warmup_ratio": Domain(uniform=(0.0, 0.2)),
}


def dotted(space: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables in tables, as TOML has them, to one table with dotted keys.

    The outermost are always sections of the config, and the innermost always domains.
    """
    result: dict[str, Any] = {}
    for key, value in space.items():
        is_section = isinstance(value, dict) and (
            not (prefix or "." in key) or any(isinstance(inner, dict) for inner in value.values())
        )
        result |= dotted(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return result
