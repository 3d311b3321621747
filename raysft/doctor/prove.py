"""`raysft doctor --prove`: on this very cluster, training computes what plain PyTorch does.

A few short runs, each laid out in another way, against one plain loop in this process; then one of
them is gone on with from its checkpoint, and its exported model is loaded.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.data import demo
from raysft.data.dataset import prepare
from raysft.doctor import plain
from raysft.doctor.compare import TOLERANCE, agreement, beyond, relative, short
from raysft.doctor.plain import Curve
from raysft.model.load import load_model_config, load_template
from raysft.runs import events, rundir, snapshot
from raysft.runs.events import Check, Event
from raysft.runtime.fit import fit

STEPS, SAVED_AT = 6, 3
RECORDS_PER_WORKER = 8  # of one step
HELD_OUT = 32
SEQ_LEN = 128  # no record of the demo is that long

# What all runs have in common. The optimizer is PyTorch's, because compiling DeepSpeed's takes
# longer than the whole proof.
SETTINGS: dict[str, Any] = {
    "data.template": "plain",
    "batch.seq_len": SEQ_LEN,
    "optim.lr": plain.LR,
    "optim.betas": plain.BETAS,
    "optim.eps": plain.EPS,
    "optim.weight_decay": plain.WEIGHT_DECAY,
    "optim.max_grad_norm": plain.MAX_NORM,
    "optim.cpu_kernel": "torch",
    "schedule.warmup_steps": plain.WARMUP_STEPS,
    "schedule.min_lr_ratio": plain.FLOOR,
    "engine.precision": "fp32",
    "run.seed": plain.SEED,
    "run.max_steps": STEPS,
    "scaling.max_failures": 0,
    "log.every_steps": 1,
    "eval.every_steps": 0,
    "checkpoint.every_steps": 0,
}


class Layout(NamedTuple):
    """How the same steps are spread over workers, memory and micro-batches."""

    several: bool  # as many workers as there is room for; else one
    zero_stage: int
    padded_by: int | None  # records of a micro-batch; None: packs, several a step

    def words(self, workers: int) -> str:
        who = f"{workers} workers" if self.several and workers > 1 else "1 worker"
        batch = f"padded by {self.padded_by}" if self.padded_by else "packed"
        return f"{who}, ZeRO {self.zero_stage}, {batch}"

    def settings(self, workers: int) -> dict[str, Any]:
        return {
            "scaling.workers": workers if self.several else 1,
            "engine.zero_stage": self.zero_stage,
            "batch.packing": self.padded_by is None,
            "batch.micro_batch_size": self.padded_by or 1,
            "batch.tokens_per_micro_batch": SEQ_LEN,
        }


# Every stage, one worker and several, packed and padded, and micro-batches of two sizes. The last
# one is also gone on with and exported.
LAYOUTS = (
    Layout(several=False, zero_stage=0, padded_by=4),
    Layout(several=True, zero_stage=0, padded_by=None),
    Layout(several=True, zero_stage=1, padded_by=2),
    Layout(several=True, zero_stage=2, padded_by=4),
    Layout(several=True, zero_stage=3, padded_by=None),
)

ALONE = Check(
    "parity: several workers",
    "warn",
    "there is room for one worker only: nothing was computed by several together",
    "For that part of the proof, make room for two workers",
)
RUN_IT = (
    "Run `raysft train gpt2-tiny-cpu` with the same scaling.workers and engine.zero_stage: its "
    "job.log has the traceback"
)
COMPARE_LAYOUTS = (
    "Do not trust a run that is laid out so. If the layouts with 1 worker pass, the fault lies "
    "between the workers: look for other versions of torch, deepspeed or Python on some node, and "
    "at the library that sums gradients (NCCL_DEBUG=INFO)"
)
COMPARE_VERSIONS = (
    "Do not trust a run that is laid out so. Nothing here went between workers: compare the "
    "versions of torch, transformers and deepspeed with constraints.txt; on a GPU, see that "
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which makes products coarser, is not set"
)
LOOK_AT_STORAGE = (
    "Do not go on with runs from their checkpoints here. See that all nodes have the same CPU or "
    "GPU and the same torch and deepspeed, and that the storage gives every node what another wrote"
)
LOOK_AT_EXPORT = (
    "Do not use exported models. If the losses above agree, the fault is in writing or loading the "
    "folder: compare the version of transformers with constraints.txt, and look at the storage"
)


@dataclass(frozen=True)
class Lab:
    """A folder that all nodes see, and what the runs in it are held against."""

    folder: Path
    scaling: dict[str, Any]  # of the user's config
    workers: int  # of a layout with several
    tokenizer: Any
    model: Any  # trained by the plain loop
    expected: Curve
    held_out: list[dict[str, str]]

    def config(self, layout: Layout, saves: bool) -> Config:
        own = {
            "model.path": str(self.folder / "model"),
            "data.path": str(self.folder / "records.json"),
            "data.eval_path": str(self.folder / "held-out.json"),
            "batch.global_batch_size": RECORDS_PER_WORKER * self.workers,
        }
        saving = {"checkpoint.every_steps": SAVED_AT} if saves else {}
        settings = own | self.scaling | layout.settings(self.workers) | SETTINGS | saving
        return validate(with_overrides({}, settings), where="doctor --prove")


class Run(NamedTuple):
    folder: Path
    curve: Curve  # of the steps that were taken
    logit_difference: float | None  # of the exported model to the engine


def prove(config: Config, storage: Path, workers: int) -> Iterator[Check]:
    """Each finding as soon as it is known, on the Ray cluster this process is connected to.

    config: of it counts what a worker gets. storage: a folder that all nodes share; what is made
    there is removed again. workers: the most to use, at least 1.

    Raises OSError where `storage` cannot be written. An interrupt raises KeyboardInterrupt.
    """
    storage.mkdir(parents=True, exist_ok=True)
    # A network file system may keep a deleted file for as long as someone holds it open.
    with TemporaryDirectory(
        prefix="raysft-prove-", dir=storage.resolve(), ignore_cleanup_errors=True
    ) as folder:
        lab = make_lab(Path(folder), config, workers)
        if workers == 1:
            yield ALONE
        for number, layout in enumerate(LAYOUTS):
            is_last = layout is LAYOUTS[-1]
            tried = attempt(lab, layout, lab.folder / f"run-{number}", saves=is_last)
            yield check_parity(lab, layout, tried)
        yield check_resume(lab, LAYOUTS[-1], tried, on_gpu=config.on_gpu)
        yield check_export(lab, tried)


def make_lab(folder: Path, config: Config, workers: int) -> Lab:
    """Write records and model, and train the model by the plain loop."""
    num_records = STEPS * RECORDS_PER_WORKER * workers
    records = demo.generate(num_records + HELD_OUT, seed=5)
    train, held_out = records[:num_records], records[num_records:]
    (folder / "records.json").write_text(json.dumps(train))
    (folder / "held-out.json").write_text(json.dumps(held_out))
    tokenizer = demo.train_tokenizer(records)
    plain.write_model(folder / "model", tokenizer, SEQ_LEN)
    model = plain.load_model(folder / "model")
    expected = plain.train(model, tokenizer, train, STEPS)
    scaling = {
        "scaling.cpus_per_worker": config.scaling.cpus_per_worker,
        "scaling.gpus_per_worker": config.scaling.gpus_per_worker,
    }
    return Lab(folder, scaling, workers, tokenizer, model, expected, held_out)


def attempt(
    lab: Lab, layout: Layout, folder: Path, *, saves: bool = False, start_from: Path | None = None
) -> Run | Exception:
    """Run a layout; an error is a finding like another, and the next layout is tried all the same.

    saves: takes checkpoints and exports the model.
    """
    steps: dict[int, Any] = {}

    def keep(event: Event) -> None:
        if isinstance(event, events.Metrics) and "loss" in event.values:
            steps[event.step] = event.values

    try:
        config = lab.config(layout, saves)
        template = load_template(config)
        hf_config = load_model_config(config, template)
        data = prepare(config, template)
        folder.mkdir()
        result = fit(
            config, data.train, data.heldout, hf_config, template.tokenizer, folder, keep,
            exports=saves, start_from=start_from,
        )  # fmt: skip
    except Exception as error:
        return error
    losses = [values["loss"] for _, values in sorted(steps.items())]
    norms = [values["grad_norm"] for _, values in sorted(steps.items())]
    return Run(folder, Curve(losses, norms), result.totals.get("export_logit_difference"))


def check_parity(lab: Lab, layout: Layout, tried: Run | Exception) -> Check:
    name = f"parity: {layout.words(lab.workers)}"
    if isinstance(tried, Exception):
        return Check(name, "fail", f"did not run: {tried}", RUN_IT)
    found = agreement(tried.curve, lab.expected)
    wrong = beyond(tried.curve, lab.expected)
    if not wrong:
        return Check(name, "pass", found)
    several = layout.several and lab.workers > 1
    advice = COMPARE_LAYOUTS if several else COMPARE_VERSIONS
    return Check(name, "fail", f"{found}; more than noise at step {wrong[0]}", advice)


def check_resume(lab: Lab, layout: Layout, whole: Run | Exception, *, on_gpu: bool) -> Check:
    """Go on from the checkpoint of a run, whose later steps are known."""
    name = f"resume: {layout.words(lab.workers)}"
    if isinstance(whole, Exception):
        return Check(name, "fail", "not tried: there is no run to go on with")
    saved = snapshot.checkpoints_by_step(whole.folder).get(SAVED_AT)
    if saved is None:
        return Check(name, "fail", f"no checkpoint of step {SAVED_AT} was kept", LOOK_AT_STORAGE)
    tried = attempt(lab, layout, lab.folder / "resumed", start_from=saved)
    if isinstance(tried, Exception):
        return Check(name, "fail", f"did not run: {tried}", RUN_IT)
    wanted = Curve(whole.curve.losses[SAVED_AT:], whole.curve.norms[SAVED_AT:])
    steps = f"steps {SAVED_AT + 1} to {STEPS}"
    if tried.curve == wanted:
        return Check(name, "pass", f"{steps} are equal to the bit")
    found = f"{steps} are not equal to the bit: {agreement(tried.curve, wanted)}"
    if on_gpu and not beyond(tried.curve, wanted):
        # Some CUDA kernels add in another order each time.
        return Check(name, "warn", f"{found}, which is float noise")
    return Check(name, "fail", found, LOOK_AT_STORAGE)


def check_export(lab: Lab, tried: Run | Exception) -> Check:
    """Load the exported folder as anyone would, and compare it with the plain loop's model."""
    if isinstance(tried, Exception):
        return Check("export", "fail", "not tried: there is no model")
    try:
        exported = plain.load_model(tried.folder / rundir.MODEL)
    except Exception as error:  # of a missing or damaged file: the library raises many classes
        return Check("export", "fail", f"transformers does not load it: {error}", LOOK_AT_EXPORT)
    wanted = plain.mean_loss(lab.model, lab.tokenizer, lab.held_out)
    loss = plain.mean_loss(exported, lab.tokenizer, lab.held_out)
    gap = relative(loss, wanted)
    to_engine = math.inf if tried.logit_difference is None else tried.logit_difference
    found = (
        f"held-out loss {loss:.4f}, within {short(gap)} of plain PyTorch's; "
        f"logits within {short(to_engine)} of the engine's"
    )
    if gap <= TOLERANCE and to_engine <= TOLERANCE:
        return Check("export", "pass", found)
    return Check("export", "fail", found, LOOK_AT_EXPORT)
