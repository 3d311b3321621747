"""[model]: what is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import Count, PositiveFloat, Section


class Shape(Section):
    """A GPT-2 architecture."""

    n_layer: Count
    n_embd: Count
    n_head: Count
    n_positions: Count = 1024
    vocab_size: Count | None = None  # default: as many as the tokenizer has tokens
    initializer_range: PositiveFloat = 0.02  # narrow models want more

    @model_validator(mode="after")
    def check_heads(self) -> "Shape":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class Model(Section):
    path: str | None = None  # hub id or folder
    init: Literal["pretrained", "scratch"] = "pretrained"
    tokenizer: str | None = None  # hub id, folder or "demo"; default: path
    shape: Shape | None = None  # read by init = "scratch" only
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    activation_checkpointing: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @property
    def tokenizer_path(self) -> str:
        return self.tokenizer or self.path or ""

    @model_validator(mode="after")
    def check_source(self) -> "Model":
        if self.init == "pretrained" and not self.path:
            raise ValueError('path is missing: a hub id or folder, or set init = "scratch"')
        if self.init == "scratch" and not (self.shape or self.path):
            raise ValueError('init = "scratch" needs a shape, or a path to take it from')
        if not self.tokenizer_path:
            raise ValueError('tokenizer is missing: a hub id, a folder, or "demo"')
        return self
