"""One embedded cluster for all tests of this folder that call `fit` themselves."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.data.asked import as_prompts
from raysft.data.dataset import Prepared, prepare
from raysft.model.load import load_model_config, load_template
from raysft.runs.events import Event, Metrics
from raysft.runtime.fit import RunResult, fit
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT
from raysft.verbs.pair_config import for_pairs
from tests.ray.group import Group

# As DeepSpeed asks: AMX or avx512_fp16.
CPU_MULTIPLIES_FP16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=max(2, len(os.sched_getaffinity(0))),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def running_ray(cluster: None) -> dict[str, str]:  # noqa: ARG001
    """The environment in which a command joins that cluster instead of starting a Ray of its own.

    For tests of what happens then: a Ray of its own takes longer than a mistake takes to be told.
    """
    import ray

    GROUPS.close()
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT-2 of 2 layers and width 256, its tokenizer, and 64 records beside it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from raysft.data import demo

    folder = tmp_path_factory.mktemp("tiny") / "model"
    records = demo.generate(64, seed=5)
    tokenizer = demo.train_tokenizer(records)
    torch.manual_seed(0)
    # Wide enough that ZeRO-3 partitions the matrices: it keeps parameters below 1e5 elements whole.
    shape = {"n_layer": 2, "n_embd": 256, "n_head": 4, "n_positions": 128}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder.parent / "records.json").write_text(json.dumps(records))
    return folder


def tiny_config(tiny_model: Path, *overrides: str) -> Config:
    """Five fp32 steps of 8 records on the tiny model, every step logged, nothing else."""
    return load_config(
        "gpt2-tiny-cpu",
        [
            "model.init=pretrained",
            f"model.path={tiny_model}",
            "model.tokenizer=none",
            f"data.path={tiny_model.parent / 'records.json'}",
            "data.eval_fraction=0.1",
            "batch.seq_len=128",
            "batch.global_batch_size=8",
            "batch.micro_batch_size=4",
            "run.max_steps=5",
            "log.every_steps=1",
            "checkpoint.every_steps=0",
            "eval.every_steps=0",
            "schedule.warmup_steps=2",
            "optim.lr=2e-3",
            "optim.weight_decay=0.1",
            *overrides,
        ],
    )


def prepared(config: Config, template: Any, objective: Objective) -> Prepared:
    data = prepare(config, template, pairs=objective.pairs)
    if not objective.draws:
        return data
    return data._replace(train=as_prompts(config, template, data.train)[0])


class Groups:
    """The workers that outlive a run: of one number, because the cluster has no room for more."""

    def __init__(self) -> None:
        self.open: dict[int, Group] = {}

    def fit_in(
        self, folder: Path, config: Config, objective: Objective = SFT
    ) -> tuple[RunResult, list[Event], Prepared]:
        """As `fit_in` below, in workers that have run other tests: for runs without checkpoints."""
        config = for_pairs(config) if objective.pairs else config
        workers = config.scaling.most
        if workers not in self.open:
            self.close()
            self.open[workers] = Group(folder / "group", config)
        template = load_template(config, pads=objective.scalar)
        hf_config = load_model_config(config, template, scalar=objective.scalar)
        data = prepared(config, template, objective)
        job = (config, data, hf_config, template.tokenizer, folder, objective)
        return *self.open[workers].fit(*job), data

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].close()


GROUPS = Groups()


@pytest.fixture(scope="module")
def groups(cluster: None) -> Iterator[Groups]:  # noqa: ARG001
    yield GROUPS
    GROUPS.close()


def fit_in(
    folder: Path, config: Config, events: list[Event] | None = None, objective: Objective = SFT
) -> tuple[RunResult, list[Event], Prepared]:
    """Run `fit` on the shared cluster; what it emitted, and the data it used.

    events: a list for what it emits, for those who want it where the run fails.
    """
    GROUPS.close()  # which hold what this run needs
    config = for_pairs(config) if objective.pairs else config
    template = load_template(config, pads=objective.scalar)
    hf_config = load_model_config(config, template, scalar=objective.scalar)
    data = prepared(config, template, objective)
    events = [] if events is None else events
    result = fit(
        config, data.train, data.heldout, hf_config, template.tokenizer, folder, events.append,
        objective=objective,
    )  # fmt: skip
    return result, events, data


def steps_of(events: list[Event]) -> list[dict[str, Any]]:
    lines = [event for event in events if isinstance(event, Metrics)]
    return [{"step": line.step, **line.values} for line in lines if "loss" in line.values]
