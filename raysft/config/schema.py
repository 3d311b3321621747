"""The whole configuration: frozen, validated once at the edge, no key that does nothing.

Every section is a table of the TOML file and every field a key that `--set section.key=value`
reaches. Rules that need more than one section are in `Config.check_sections`.
"""

from pydantic import model_validator

from raysft.config.adapter import Adapter
from raysft.config.align import Align
from raysft.config.data import DEMO, Data
from raysft.config.model import Model
from raysft.config.preference import Dpo, Pairs, Ppo, RewardModel
from raysft.config.run import Checkpoint, Eval, Log, Run
from raysft.config.scaling import Scaling
from raysft.config.secrets import PASSWORD, SECRET_OPTION, strings
from raysft.config.section import Section
from raysft.config.studies import Bench, Tune
from raysft.config.training import Batch, Engine, Optim, Schedule


class Config(Section):
    """The whole config. Every key has a default but those that name a model and its data."""

    run: Run = Run()
    model: Model
    adapter: Adapter = Adapter()
    data: Data
    batch: Batch = Batch()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    engine: Engine = Engine()
    scaling: Scaling = Scaling()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()
    reward_model: RewardModel = RewardModel()
    dpo: Dpo = Dpo()
    ppo: Ppo = Ppo()
    pairs: Pairs = Pairs()
    align: Align = Align()
    tune: Tune = Tune()
    bench: Bench = Bench()

    def check_looks(self, *, holds_out: bool) -> None:
        """Raises ValueError where no answers along the run tell which model is the best."""
        if not (holds_out and self.eval.generate_every_steps and self.eval.exact_match_records):
            raise ValueError(
                'checkpoint.keep_best = "exact_match" goes by answers along the run: set '
                "eval.generate_every_steps and eval.exact_match_records, and data.eval_fraction "
                "or data.eval_path"
            )

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

    @property
    def prompts(self) -> int:
        """Of an iteration of `raysft ppo`, whose answers are trained on in so many minibatches."""
        return self.batch.global_batch_size * self.ppo.minibatches // self.ppo.group

    def at(self, workers: int) -> "Config":
        """The same run on so many workers, of those that scaling.workers allows."""
        return self.model_copy(
            update={"scaling": self.scaling.model_copy(update={"workers": workers})}
        )

    @property
    def on_gpu(self) -> bool:
        return self.scaling.gpus_per_worker > 0

    @property
    def left_open(self) -> tuple[str, ...]:
        """The keys that are left to raysft to choose: none once `verbs.settle` has chosen."""
        keys = {
            "engine.zero_stage": self.engine.zero_stage,
            "model.activation_checkpointing": self.model.activation_checkpointing,
            "batch.tokens_per_micro_batch": self.batch.tokens_per_micro_batch,
        }
        return tuple(key for key, value in keys.items() if value == "auto")

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
        holds_out = self.data.eval_fraction > 0 or self.data.eval_path is not None
        for key in ("checkpoint.keep_best", "eval.patience"):
            section, _, name = key.partition(".")
            asked = getattr(getattr(self, section), name)
            if asked == "exact_match":
                self.check_looks(holds_out=holds_out)
            elif asked and not (holds_out and self.eval.every_steps):
                raise ValueError(
                    f"{key} goes by the held-out loss along the run: set eval.every_steps, and "
                    "data.eval_fraction or data.eval_path"
                )
        if self.scaling.elastic and not self.checkpoint.every_steps:
            raise ValueError(
                "scaling.workers [min, max] goes on from a checkpoint when their number changes: "
                "set checkpoint.every_steps above 0"
            )
        if self.batch.packing and self.model.attention == "eager":
            raise ValueError('model.attention "eager" cannot keep packed records apart: set '
                             'batch.packing = false, or model.attention = "sdpa"')  # fmt: skip
        if self.model.attention == "flash_attention_2" and not (
            self.on_gpu and self.engine.precision != "fp32"
        ):
            raise ValueError(
                'model.attention "flash_attention_2" computes on a GPU, in bf16 or fp16: set '
                'scaling.gpus_per_worker and engine.precision so, or take "sdpa"'
            )
        if self.model.compile and self.engine.zero_stage not in (0, 1):
            raise ValueError(
                f"model.compile needs engine.zero_stage 0 or 1, not {self.engine.zero_stage}: the "
                "hooks of the higher stages would stop the compiler at every layer"
            )
        if self.adapter.is_there and self.model.init == "scratch":
            raise ValueError(
                "adapter.rank trains beside weights that stay as they are, and those of model.init "
                '= "scratch" have learnt nothing: leave out one of them'
            )
        if self.adapter.is_there and self.model.compile:
            raise ValueError("model.compile is not tried with an adapter: leave out one of them")
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
