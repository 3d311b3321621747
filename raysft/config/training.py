"""[batch], [optim], [schedule], [engine]: what an optimizer step is, and how it is computed."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from raysft.config.section import (
    Auto,
    FloatOrZero,
    Fraction,
    PositiveFloat,
    Precision,
    Records,
    Section,
    SeqLen,
    StepsOrZero,
    Tokens,
    Unit,
    count_or_auto,
)


class Batch(Section):
    """What goes into one optimizer step, and into one forward pass."""

    seq_len: SeqLen = 512
    """Most tokens of one record; `data.truncate` decides what becomes of longer ones. Must not
    exceed the positions of the model."""
    global_batch_size: Records = 32
    """Records in one optimizer step, over all workers. Without packing it must be a multiple of
    `scaling.workers` times `micro_batch_size`."""
    packing: bool = True
    """Lay whole records end to end, without padding, each attending only to itself. `false`
    gives each record a row of its own, padded to the longest in its micro-batch."""
    tokens_per_micro_batch: Annotated[
        Tokens | Auto | None, BeforeValidator(count_or_auto), Unit("tokens")
    ] = None
    """Most tokens in one pack, which is one forward pass of one worker; at least `seq_len`. Used
    only with packing. `"auto"` takes what keeps the device busy and fits its memory. When absent,
    `micro_batch_size` times `seq_len`."""
    micro_batch_size: Records = 1
    """Records in one forward pass of one worker, without packing. With packing it only sets the
    default of `tokens_per_micro_batch`."""

    @property
    def pack_tokens(self) -> int:
        """Most tokens of a pack. Once they are chosen, where that is left to raysft."""
        assert self.tokens_per_micro_batch != "auto"
        return self.tokens_per_micro_batch or self.micro_batch_size * self.seq_len

    @model_validator(mode="after")
    def check_pack(self) -> "Batch":
        chosen = self.tokens_per_micro_batch != "auto"
        if self.packing and chosen and self.pack_tokens < self.seq_len:
            raise ValueError(
                f"tokens_per_micro_batch {self.pack_tokens} is less than seq_len {self.seq_len}: "
                "a record must fit into a pack"
            )
        return self


class Optim(Section):
    """The optimizer, and what happens to a gradient before it is applied."""

    name: Literal["adamw", "adam"] = "adamw"
    """`"adamw"` applies weight decay to the weights directly, `"adam"` through the gradient."""
    lr: PositiveFloat = 1e-5
    """Peak learning rate, reached at the end of warmup."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of Adam's two running averages: of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of Adam's update."""
    weight_decay: FloatOrZero = 0.0
    """Decay of matrices and embeddings. Biases and layer norms are never decayed."""
    max_grad_norm: FloatOrZero = 1.0
    """L2 norm that the gradient of all parameters together is clipped to. 0 does not clip."""
    skip_spikes: Annotated[FloatOrZero, Unit("times the median norm")] = 0.0
    """Skip a step whose gradient norm, before clipping, is beyond this multiple of the median over
    the last 64 steps: above 1, or 0 to skip none. A GPU then has to wait for the norm in every
    step."""
    cpu_kernel: Literal["auto", "torch"] = "auto"
    """Where the optimizer runs on the CPU: `"auto"` takes DeepSpeed's Adam, compiled on first use,
    which takes a minute or two, or PyTorch's if that fails. `"torch"` always takes PyTorch's."""

    @model_validator(mode="after")
    def check_skip_spikes(self) -> "Optim":
        if 0 < self.skip_spikes <= 1:
            raise ValueError(
                f"skip_spikes {self.skip_spikes:g} would skip half of all steps or more: it is a "
                "multiple of the median, such as 5, or 0 for none"
            )
        return self


class Schedule(Section):
    """The learning rate over the run: linear warmup to `optim.lr`, then what `name` says. Skipped
    steps do not advance it."""

    name: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """After the warmup: half a cosine, or a line, down to the floor; no change; one over the square
    root of the step; or no change until the last steps and down to the floor in them
    (warmup-stable-decay)."""
    warmup_ratio: Annotated[Fraction, Unit("of all steps")] | None = None
    """Length of warmup. When both warmup keys are absent, 0.05; set only one of them."""
    warmup_steps: StepsOrZero | None = None
    """Length of warmup. When absent, `warmup_ratio` decides."""
    min_lr_ratio: Annotated[Fraction, Unit("of `optim.lr`")] = 0.1
    """Floor, which the last step reaches; of `"inverse_sqrt"` the least. `"constant"` has none."""
    decay_ratio: Annotated[Fraction, Unit("of all steps")] | None = None
    """How long `"wsd"` decays. When absent, 0.2."""

    @model_validator(mode="after")
    def check_one_warmup(self) -> "Schedule":
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("set warmup_ratio or warmup_steps, not both")
        return self

    @model_validator(mode="after")
    def check_decay(self) -> "Schedule":
        if self.decay_ratio is not None and self.name != "wsd":
            raise ValueError(f'decay_ratio is of name = "wsd", and this is "{self.name}"')
        return self


class Engine(Section):
    """How DeepSpeed computes a step: what is spread over the workers, in which precision, and what
    is moved to the CPU."""

    zero_stage: Literal[0, 1, 2, 3, "auto"] = 3
    """What is split over the workers: 0 nothing, 1 optimizer states, 2 gradients as well, 3
    parameters as well. 0 trains in fp32 only. `"auto"` takes the lowest of 1 to 3 that fits, which
    is the fastest."""
    precision: Precision = "bf16"
    """Type of weights and activations in the forward and backward pass, and of the exported model.
    With bf16 and fp16 the optimizer keeps fp32 weights. fp16 needs a device that supports it."""
    offload_optimizer: bool = False
    """Keep the optimizer states in CPU memory and update there. Needs `zero_stage` 1, 2 or 3."""
    offload_params: bool = False
    """Keep the parameters in CPU memory while they are not in use. Needs `zero_stage` 3."""
    cpu_products: Literal["auto", "bf16", "fp32"] = "auto"
    """How a CPU multiplies bf16 matrices: directly, or in fp32 with the result rounded, which
    differs only in the order of summation and is faster where bf16 instructions are slow. `"auto"`
    chooses by the CPU. Attention over packed records is always in fp32."""

    @property
    def stage(self) -> int:
        """Once it is chosen, where that is left to raysft."""
        assert self.zero_stage != "auto"
        return self.zero_stage

    @model_validator(mode="after")
    def check_precision(self) -> "Engine":
        # DeepSpeed 0.19.8 divides these gradients by a loss scale that it has not applied to the
        # loss. Adam hides it but for its eps: losses stray from fp32 from the second step on.
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_stage 0 trains in fp32 only, because DeepSpeed's {self.precision} update is "
                "inexact there: take zero_stage 1"
            )
        return self

    @model_validator(mode="after")
    def check_offload(self) -> "Engine":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_params and self.zero_stage not in (3, "auto"):
            raise ValueError("offload_params needs zero_stage 3")
        return self
