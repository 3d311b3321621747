"""The whole configuration: frozen, validated once at the edge, no key that does nothing.

Every section is a table of the TOML file and every field a key that `--set section.key=value`
reaches. Rules that need more than one field are in `Config.check_sections`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysft.config.scaling import Scaling
from raysft.config.section import Count, CountOrZero, Fraction, PositiveFloat, Section, SeqLen
from raysft.config.space import Tune

DEMO = "demo"  # data.path and model.tokenizer: the instruction set and tokenizer built in

# A password in a URI: USER:PASSWORD@ before the host, where a slash in the password is forgiven.
# After the host, ":" and "@" are letters of an object's key; and HOST:PORT/ is no password.
PASSWORD = re.compile(r"://[^/?#\[\s]*:(?!\d+(?:[/?#]|$))[^@\s]*@(?:[^/?#\s]*@)?")
# Another secret: an option such as client_secret, or the signature of an Azure link.
SECRET_OPTION = re.compile(
    r"(?i)([?&](?:\w*(?:secret|token|password|signature|_key)\w*|sig)=)[^&\s]*"
)


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


Format = Literal[
    "auto", "messages", "sharegpt", "self_instruct", "alpaca", "prompt_completion", "text"
]


class Fields(Section):
    """Names of a record's fields where they are not those that its format knows."""

    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = None
    history: str | None = None
    instances: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    conversations: str | None = None
    tools: str | None = None
    text: str | None = None


class Source(Section):
    """One part of a mixture, as a table of `data.path`. What is absent is taken from `data`."""

    path: str
    weight: PositiveFloat = 1.0  # how often an epoch sees each of its records, on average
    format: Format | None = None
    fields: Fields | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None


class Data(Section):
    # Files, folders, globs, URIs such as s3://, a hub id, or "demo"; one, or a list of them.
    path: str | tuple[str | Source, ...] = DEMO
    format: Format = "auto"
    fields: Fields = Fields()
    template: str = "auto"  # "tokenizer", "plain", "alpaca", "chatml" or a Jinja file
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    subset: str | None = None  # of a hub dataset, as are the next two
    split: str = "train"
    revision: str | None = None
    max_records: Count | None = None
    eval_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    eval_path: str | tuple[str | Source, ...] | None = None  # used instead of eval_fraction
    mask_prompt: bool = True  # false: the loss is on every token
    truncate: bool = True  # false: records longer than seq_len are dropped
    drop_duplicates: bool = False  # keep the first of equal records
    on_bad_record: Literal["error", "skip"] = "error"


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


class Bench(Section):
    """What `raysft bench` measures. A step has batch.global_batch_size sequences."""

    seq_lens: Annotated[tuple[SeqLen, ...], Field(min_length=1)] = (512, 640, 768, 896, 1024)
    steps: Count = 4  # timed, of each case
    warmup_steps: Count = 2  # before them, and not timed: the first allocates, the second settles
    synthetic: bool = False  # random tokens, all supervised, instead of the records


class Config(Section):
    run: Run = Run()
    model: Model
    data: Data = Data()
    batch: Batch = Batch()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    engine: Engine = Engine()
    scaling: Scaling = Scaling()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()
    tune: Tune = Tune()
    bench: Bench = Bench()

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes of one worker in one optimizer step; of packs, the most there can be."""
        batch, workers = self.batch, self.scaling.fewest
        if not batch.packing:
            return batch.global_batch_size // (workers * batch.micro_batch_size)
        # Any two packs hold more than one pack's tokens together, or they would be one.
        tokens = batch.global_batch_size * batch.seq_len
        packs = min(batch.global_batch_size, max(1, -(-2 * tokens // batch.pack_tokens) - 1))
        return -(-packs // workers)

    def at(self, workers: int) -> "Config":
        """The same run on so many workers, of those that scaling.workers allows."""
        return self.model_copy(
            update={"scaling": self.scaling.model_copy(update={"workers": workers})}
        )

    @property
    def on_gpu(self) -> bool:
        return self.scaling.gpus_per_worker > 0

    @model_validator(mode="after")
    def check_secrets(self) -> "Config":  # the first, because other messages may name a path
        for key, text in strings(self.model_dump()):
            if PASSWORD.search(text) or SECRET_OPTION.search(text):
                raise ValueError(
                    f"{key} holds a password or another secret, which run.json would keep: leave "
                    "it out, and give it by the environment of the machine that reads the data, "
                    "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        return self

    @model_validator(mode="after")
    def check_sections(self) -> "Config":
        for workers in range(self.scaling.fewest, self.scaling.most + 1):
            step = workers * self.batch.micro_batch_size
            if not self.batch.packing and self.batch.global_batch_size % step:
                raise ValueError(
                    f"batch.global_batch_size {self.batch.global_batch_size} is not a multiple of "
                    f"scaling.workers {workers} x batch.micro_batch_size "
                    f"{self.batch.micro_batch_size} = {step}"
                )
        if self.scaling.elastic and not self.checkpoint.every_steps:
            raise ValueError(
                "scaling.workers [min, max] goes on from a checkpoint when their number changes: "
                "set checkpoint.every_steps above 0"
            )
        if self.batch.packing and self.model.attention == "eager":
            raise ValueError('model.attention "eager" cannot keep packed records apart: set '
                             'batch.packing = false, or model.attention = "sdpa"')  # fmt: skip
        shape = self.model.shape
        if self.model.init == "scratch" and shape and self.batch.seq_len > shape.n_positions:
            raise ValueError(
                f"batch.seq_len {self.batch.seq_len} is past model.shape.n_positions "
                f"{shape.n_positions}: GPT-2 has no position embeddings beyond it"
            )
        if self.model.tokenizer_path == DEMO and self.data.path != DEMO:
            raise ValueError(
                'model.tokenizer = "demo" knows the demo records only: set model.tokenizer to a '
                "hub id or folder for data.path " + repr(self.data.path)
            )
        return self


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in it that is a value, under the key that leads to it."""
    if isinstance(value, str):
        yield key, value
    named = enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in value.items() if isinstance(value, dict) else named:
        yield from strings(inner, f"{key}.{name}" if key else str(name))
