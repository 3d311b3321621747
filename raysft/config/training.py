"""[batch], [optim], [schedule], [engine]: what an optimizer step is, and how it is computed."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysft.config.section import Count, CountOrZero, Fraction, PositiveFloat, Section, SeqLen


class Batch(Section):
    seq_len: SeqLen = 512
    global_batch_size: Count = 32  # records in one optimizer step
    packing: bool = True  # records end to end, without padding
    tokens_per_micro_batch: Count | None = None  # of a pack; default micro_batch_size x seq_len
    micro_batch_size: Count = 1  # records in one forward pass of one worker, when padded

    @property
    def pack_tokens(self) -> int:
        """Most tokens of a pack."""
        return self.tokens_per_micro_batch or self.micro_batch_size * self.seq_len

    @model_validator(mode="after")
    def check_pack(self) -> "Batch":
        if self.packing and self.pack_tokens < self.seq_len:
            raise ValueError(
                f"tokens_per_micro_batch {self.pack_tokens} is less than seq_len {self.seq_len}: "
                "a record must fit into a pack"
            )
        return self


class Optim(Section):
    name: Literal["adamw", "adam"] = "adamw"
    lr: PositiveFloat = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0  # 0: no clipping
    # An update is skipped when the norm of its gradient, before clipping, is beyond this multiple
    # of the median of the last 64 steps; 0: none is. A GPU then waits for the norm in every step.
    skip_spikes: Annotated[float, Field(ge=0.0)] = 0.0
    # "auto" takes DeepSpeed's CPU Adam where the optimizer runs on a CPU; its first use on a
    # machine compiles it, which takes a minute or two.
    cpu_kernel: Literal["auto", "torch"] = "auto"

    @model_validator(mode="after")
    def check_skip_spikes(self) -> "Optim":
        if 0 < self.skip_spikes <= 1:
            raise ValueError(
                f"skip_spikes {self.skip_spikes:g} would skip half of all steps or more: it is a "
                "multiple of the median, such as 5, or 0 for none"
            )
        return self


class Schedule(Section):
    warmup_ratio: Fraction | None = None  # of all steps; default 0.05 when warmup_steps is absent
    warmup_steps: CountOrZero | None = None
    min_lr_ratio: Fraction = 0.1

    @model_validator(mode="after")
    def check_one_warmup(self) -> "Schedule":
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("set warmup_ratio or warmup_steps, not both")
        return self


class Engine(Section):
    zero_stage: Literal[0, 1, 2, 3] = 3
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    offload_optimizer: bool = False
    offload_params: bool = False
    # How a CPU multiplies bf16 tensors: "fp32" widens them first and rounds the result, which is
    # the same up to the order of the sum, and faster on CPUs without bf16 matrix units. "auto"
    # goes by what the CPU has. Attention is widened either way.
    cpu_products: Literal["auto", "bf16", "fp32"] = "auto"

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
        if self.offload_params and self.zero_stage != 3:
            raise ValueError("offload_params needs zero_stage 3")
        return self
