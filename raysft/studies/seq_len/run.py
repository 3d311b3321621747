"""What the sequence length costs: the real training step at several lengths, in fresh workers."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysft.config.load import validate, with_overrides
from raysft.config.schema import Config
from raysft.data.dataset import TokenDataset, epoch_order
from raysft.errors import OutOfMemory, RunError, UserError
from raysft.estimate.memory import memory_gib
from raysft.estimate.shape import Dims, dims_of_gpt2, flops, parameters
from raysft.runs import rundir
from raysft.runs.events import Emit, Event, without
from raysft.studies.seq_len.report import verdict, write_report

TABLES = ("sequences", "tokens")  # what every case of a table has an equal number of in a step


@dataclass(frozen=True)
class Case:
    seq_len: int
    sequences: int  # in one optimizer step
    tables: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.seq_len * self.sequences


def cases(config: Config) -> list[Case]:
    """Of both tables, shortest first; a case that is in both runs once.

    Equal sequences: batch.global_batch_size of them. Equal tokens: as many as those have at the
    longest length, as nearly as whole sequences and micro-batches allow.
    """
    lengths, batch = config.bench.seq_lens, config.batch
    count = batch.global_batch_size
    at_once = config.scaling.most * (1 if batch.tokens_per_micro_batch else batch.micro_batch_size)
    if count % at_once:
        raise UserError(
            f"batch.global_batch_size {count} is not a multiple of {at_once}, what all workers "
            "take at once: some of them would wait for others"
        )
    tokens = count * max(lengths)
    members: dict[tuple[int, int], list[str]] = {}
    for length in sorted(set(lengths)):
        near = max(1, round(tokens / length / at_once)) * at_once
        for table, sequences in zip(TABLES, (count, near), strict=True):
            members.setdefault((length, sequences), []).append(table)
    return [Case(*key, tuple(tables)) for key, tables in members.items()]


def longest(config: Config) -> Config:
    """The config at its longest case: what data is read for, and what the model must allow.

    Raises UserError when a model from scratch has no such positions.
    """
    shape, most = config.model.shape, max(config.bench.seq_lens)
    if config.model.init == "scratch" and shape and most > shape.n_positions:
        raise UserError(
            f"bench.seq_lens: {most} is past model.shape.n_positions {shape.n_positions}: leave it "
            "out, or give the model more positions"
        )
    room = config.batch.tokens_per_micro_batch
    if config.batch.packing and room and most > room:
        raise UserError(
            f"bench.seq_lens: {most} is past batch.tokens_per_micro_batch {room}: raise it, or set "
            "it to none and batch.micro_batch_size in its place"
        )
    overrides = {"batch.seq_len": most}
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")


def case_config(config: Config, case: Case) -> Config:
    """The config of a run that does nothing but the steps of this case.

    A micro-batch has as many whole sequences as batch.tokens_per_micro_batch has room for, or where
    that is not set batch.micro_batch_size of them.
    """
    room = config.batch.tokens_per_micro_batch
    overrides = {
        "batch.seq_len": case.seq_len,
        "batch.global_batch_size": case.sequences,
        "batch.tokens_per_micro_batch": room - room % case.seq_len if room else None,
        "run.max_steps": config.bench.warmup_steps + config.bench.steps,
        "checkpoint.every_steps": 0,
        "eval.every_steps": 0,
        "log.every_steps": 1,
    }
    return validate(with_overrides(config.model_dump(mode="json"), overrides), "bench")


def joined(dataset: TokenDataset, length: int, count: int, seed: int) -> TokenDataset:
    """`count` sequences of `length` tokens: the records end to end, over again if they run out."""
    ids, masks = [], []
    have, epoch = 0, 0
    while have < length * count:
        for index in epoch_order(dataset, seed, epoch):
            ids.append(dataset.tokens(index))
            masks.append(dataset.mask(index))
            have += len(ids[-1])
            if have >= length * count:
                break
        epoch += 1
    shape = (count, length)
    return rows_of(
        np.concatenate(ids)[: length * count].reshape(shape),
        np.concatenate(masks)[: length * count].reshape(shape),
    )


def synthetic(vocabulary: int, length: int, count: int, seed: int) -> TokenDataset:
    """Random tokens, all of them supervised."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (count, length), dtype=np.int32)
    return rows_of(ids, np.ones_like(ids, dtype=np.bool_))


def rows_of(ids: Any, masks: Any) -> TokenDataset:
    """A dataset of rows [R, T]."""
    count, length = ids.shape
    return TokenDataset(
        input_ids=ids.astype(np.int32).reshape(-1),
        loss_mask=masks.reshape(-1),
        starts=np.arange(count, dtype=np.int64) * length,
        lengths=np.full(count, length, dtype=np.int64),
        supervised=masks[:, 1:].sum(axis=1, dtype=np.int64),  # nothing predicts the first
        source=np.zeros(count, dtype=np.uint16),
    )


@dataclass(frozen=True)
class Study:
    """What all cases share."""

    config: Config
    hf_config: Any
    tokenizer: Any
    records: TokenDataset | None  # none: synthetic
    run_dir: Path


def run(study: Study, emit: Emit) -> Event:
    """The whole study, on the Ray cluster this process is connected to. Returns its summary.

    results.json is written after every case, so that what has ended is kept whatever comes.
    """
    results: dict[str, Any] = {
        "study": "seq-len",
        "title": title(study),
        "stamp": rundir.read_json(study.run_dir / rundir.RUN)["stamp"],
        "config": study.config.model_dump(mode="json"),
        "cases": [],
    }
    for result in run_cases(study, emit):
        results["cases"].append(result)
        rundir.write_json(study.run_dir / rundir.RESULTS, results)
    write_report(results, study.run_dir)
    return {
        "results": str(study.run_dir / rundir.RESULTS),
        "report": str(study.run_dir / rundir.REPORT),
        "verdict": verdict(results),
        "cases": {
            status: sum(case["status"] == status for case in results["cases"])
            for status in ("done", "out of memory", "failed")
        },
    }


def title(study: Study) -> str:
    config, dims = study.config, dims_of_gpt2(study.hf_config.to_dict())
    scaling = config.scaling
    what = str(config.model.path or "a model")
    if dims is not None:
        count = sum(parameters(dims).values())
        what = f"GPT-2 of {dims.n_layer} layers and width {dims.n_embd} ({count / 1e6:,.0f} M)"
    device = "GPU" if config.on_gpu else "CPU"
    return (
        f"{what}, ZeRO-{config.engine.zero_stage}, {config.engine.precision}, "
        f"{scaling.words}, {device}"
    )


def run_cases(study: Study, emit: Emit) -> Iterator[dict[str, Any]]:
    """The result of each case as it ends; one that fails is a result like any other."""
    listed = cases(study.config)
    for number, case in enumerate(listed, start=1):
        emit(
            {
                "event": "status",
                "message": f"case {number} of {len(listed)}: {case.sequences} sequences of "
                f"{case.seq_len} tokens a step",
            }
        )
        result = run_case(study, case)
        emit({"event": "case"} | result)
        yield result


def run_case(study: Study, case: Case) -> dict[str, Any]:
    from raysft.runtime import fit

    config = case_config(study.config, case)
    data = sequences(study, case)
    seen: list[Event] = []
    outcome: dict[str, Any] = {"status": "done", "error": None, "peak": None}
    folder = study.run_dir / "cases" / f"{case.seq_len}-{case.sequences}"
    nothing = rows_of(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.bool_))
    try:
        result = fit.fit(
            config, data, nothing, study.hf_config, study.tokenizer, folder, seen.append,
            exports=False,
        )  # fmt: skip
        outcome["peak"] = result.totals["peak"]
    except OutOfMemory as error:
        outcome |= {"status": "out of memory", "error": str(error)}
    except RunError as error:
        outcome |= {"status": "failed", "error": str(error)}
    steps = [event for event in seen if "step_time_s" in event]
    times = [step["step_time_s"] for step in steps]
    warmup = config.bench.warmup_steps
    workers = next((without(e, "event") for e in seen if e["event"] == "workers"), {})
    return {
        **asdict(case),
        "tokens": case.tokens,
        "supervised_tokens": float(data.supervised.mean()) * case.sequences,
        "workers": config.scaling.most,
        **outcome,
        "warmup_times_s": times[:warmup],
        "step_times_s": times[warmup:],
        "peak_memory_gib": max((s["peak_memory_gib"] for s in steps), default=None),
        "memory_gib": workers.get("memory_gib"),
        "observed": workers.get("observed"),
        "products": workers.get("products"),
        "predicted": predicted(study, config, case, data),
    }


def sequences(study: Study, case: Case) -> TokenDataset:
    config = study.config
    count = case.sequences * (config.bench.warmup_steps + config.bench.steps)
    if study.records is None:
        return synthetic(study.hf_config.vocab_size, case.seq_len, count, config.run.seed)
    return joined(study.records, case.seq_len, count, config.run.seed)


def predicted(
    study: Study, config: Config, case: Case, data: TokenDataset
) -> dict[str, Any] | None:
    """FLOPs of a step and memory of a worker, by part; None where the model is no GPT-2."""
    dims: Dims | None = dims_of_gpt2(study.hf_config.to_dict())
    if dims is None:
        return None
    supervised = float(data.supervised.mean()) * case.sequences
    return {
        "flops": flops(dims, case.tokens, case.tokens * case.seq_len, supervised),
        "memory_gib": memory_gib(config, dims),
    }
