"""[model]: what is trained."""

from typing import Annotated, Literal

from pydantic import model_validator

from raysft.config.section import (
    Count,
    FractionBelowOne,
    Place,
    PositiveFloat,
    Section,
    Tokens,
    Unit,
)


class Shape(Section):
    """The architecture of a GPT-2 trained from scratch."""

    n_layer: Annotated[Count, Unit("layers")]
    """Number of transformer blocks."""
    n_embd: Count
    """Width: the size of the embeddings and hidden states. Must be a multiple of `n_head`."""
    n_head: Annotated[Count, Unit("heads")]
    """Attention heads in each block."""
    n_positions: Tokens = 1024
    """Position embeddings: the longest sequence the model accepts. `batch.seq_len` must not exceed
    it."""
    vocab_size: Tokens | None = None
    """Token embeddings: at least as many as the tokenizer has tokens. When absent, exactly as
    many."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights. Narrow models train better with a larger one."""

    @model_validator(mode="after")
    def check_heads(self) -> "Shape":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class Model(Section):
    """The model to train, and its tokenizer: the one section that every config must have."""

    path: Place | None = None
    """Hugging Face hub id or local folder of the model; of one for text and images, its text part
    is taken. May be absent only when `init` is `"scratch"` and both `shape` and `tokenizer` are
    set."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """`"pretrained"` starts from the weights of `path`; `"scratch"` from random weights, in the
    architecture of `shape` or, without one, of `path`."""
    tokenizer: Place | None = None
    """Hub id or local folder of the tokenizer, or `"demo"`, which knows the demo records only. When
    absent, `path`."""
    shape: Shape | None = None
    """Architecture of a model from scratch; ignored when `init` is `"pretrained"`. When absent,
    that of `path`, with one embedding for each token of the tokenizer."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """`"sdpa"` is PyTorch's fused attention. `"eager"` keeps every score in memory and needs
    `batch.packing = false`. `"flash_attention_2"` needs a GPU, the flash-attn package, and bf16 or
    fp16."""
    activation_checkpointing: Literal[True, False, "auto"] = False
    """Recompute the activations of each block in the backward pass instead of keeping them: less
    memory, at the cost of a second forward pass. `"auto"` does so where it would not fit else."""
    compile: bool = False
    """Compile each block with `torch.compile`, which the first steps wait for. Needs `zero_stage` 0
    or 1."""
    dropout: Annotated[FractionBelowOne, Unit("probability")] = 0.0
    """Dropout wherever the architecture applies it, by whatever name. Replaces what the model's own
    config says; 0 also ends noise of another kind, such as a router's jitter."""

    @property
    def recomputes(self) -> bool:
        """Activations, once that is chosen where it is left to raysft."""
        assert self.activation_checkpointing != "auto"
        return self.activation_checkpointing

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
