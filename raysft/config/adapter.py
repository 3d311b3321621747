"""[adapter]: a few new weights that are trained in place of those of the model."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from raysft.config.section import Auto, Count, FractionBelowOne, Section, Unit, names_or_auto


class Adapter(Section):
    """Low-rank adapters (LoRA), by peft: the weights of the model stay as they are, and beside each
    targeted layer two narrow matrices are trained. Without a `rank` all weights are trained."""

    rank: Count | None = None
    """Width of the two matrices of a layer. When absent, there is no adapter."""
    alpha: Count | None = None
    """Their product is multiplied by `alpha / rank`. When absent, twice the `rank`."""
    dropout: Annotated[FractionBelowOne, Unit("probability")] = 0.0
    """Dropout on what the first of them reads."""
    target_modules: Annotated[Auto | tuple[str, ...], BeforeValidator(names_or_auto)] = "auto"
    """Names of the layers that get them, whole or the last parts of a name, such as
    `["c_attn"]`. `"auto"` takes every linear layer but the head."""
    variant: Literal["lora", "dora", "rslora"] = "lora"
    """`"dora"` also trains the norm of each row of the layer's weight (Liu et al. 2024); `"rslora"`
    multiplies by `alpha / sqrt(rank)` (Kalajdzievski 2023)."""
    merge: bool = True
    """Whether `model/` is a whole model with the adapter merged into its weights, or the adapter
    alone, which peft loads onto the model that it came from."""

    @property
    def is_there(self) -> bool:
        return self.rank is not None

    @property
    def scale_alpha(self) -> int:
        """`alpha`, or what it is when absent."""
        return self.alpha or 2 * (self.rank or 0)

    @property
    def words(self) -> str | None:
        """Such as "LoRA of rank 8, alpha 16, on every linear layer"."""
        if self.rank is None:
            return None
        names = {"lora": "LoRA", "dora": "DoRA", "rslora": "rsLoRA"}
        targets = self.target_modules
        layers = "every linear layer" if targets == "auto" else ", ".join(targets)
        dropout = f", dropout {self.dropout:g}" if self.dropout else ""
        of_rank = f"{names[self.variant]} of rank {self.rank}, alpha {self.scale_alpha}{dropout}"
        return f"{of_rank}, on {layers}"

    @model_validator(mode="after")
    def check_rank(self) -> "Adapter":
        if self.rank is None:
            fields = type(self).model_fields.items()
            given = [name for name, field in fields if getattr(self, name) != field.default]
            if given:
                raise ValueError(f"{given[0]} is of an adapter, and without a rank there is none")
        return self
