"""The arithmetic of `raysft estimate` against counts made by others."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from raysft.config.data import DEMO_VOCABULARY
from raysft.config.load import load_config
from raysft.data import demo
from raysft.data.read import DEMO_RECORDS
from raysft.errors import UserError
from raysft.estimate.devices import device_of
from raysft.estimate.families import Dims, dims_of_family, gpt2_dims
from raysft.estimate.memory import LOGIT_BLOCK_BYTES, Layout, layout_of, memory_bytes, model_states
from raysft.estimate.report import at, estimate, largest_micro_batch, total_gib
from raysft.estimate.shape import dims_of, dims_of_json, flops, parameters, tokens_known
from raysft.estimate.step_time import Hardware, computed_flops, scaling, step_time, traffic_bytes
from raysft.train import head_nll

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# What the preset leaves to the device.
FIXED = (
    "engine.zero_stage=3", "model.activation_checkpointing=true",
    "batch.tokens_per_micro_batch=4096",
)  # fmt: skip
LARGE = gpt2_dims(36, 1280, 20, 1024, 50_257)


def on_meta(dims: Dims) -> GPT2LMHeadModel:
    """The model without its numbers."""
    config = GPT2Config(
        n_layer=dims.n_layer, n_embd=dims.n_embd, n_head=dims.n_head,
        n_positions=dims.n_positions, vocab_size=dims.vocabulary, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        return GPT2LMHeadModel(config).train()


@pytest.mark.parametrize(
    "raw",
    [
        {"n_embd": 64, "n_head": 4},
        {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2},
        {"n_layer": 2, "n_positions": 64, "vocab_size": 99, "n_inner": None},
        {"n_layer": 2, "tie_word_embeddings": False},
    ],
)
def test_a_config_that_lacks_keys_is_what_transformers_makes_of_it(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | raw))
    dims = dims_of_json(tmp_path / "config.json")
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert dims == dims_of_family(config.to_dict())
    with torch.device("meta"):
        model = GPT2LMHeadModel(config).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameters(dims).values()) == count
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 64, dtype=torch.int64, device="meta")).logits.sum().backward()
    ours = sum(flops(dims, 64, 64 * 64, 64).values())
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_head_of_its_own_takes_memory(layout: Layout) -> None:
    own = replace(LARGE, tied=False)
    tied, untied = (memory_bytes(replace(layout, stage=1), dims) for dims in (LARGE, own))
    head = LARGE.vocabulary * LARGE.n_embd
    assert untied["weights"] - tied["weights"] == layout.weight_bytes * head
    assert untied["Adam moments"] - tied["Adam moments"] == 8 * head / layout.workers


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[]", "it holds a list, not an object"),
        ('{"model_type": "gpt2", "n_layer": "12"}', "n_layer is '12', not a whole number"),
        ('{"model_type": "gemma3", "text_config": {}}', "is of type 'gemma3'"),
        ("{}", "is of type None"),
    ],
)
def test_a_config_that_is_none_is_told(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(part)):
        dims_of_json(tmp_path / "config.json")


def test_a_model_from_scratch_has_the_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    scratch = ["model.shape=none", f"model.path={tmp_path}", "model.tokenizer=demo"]
    assert dims_of(load_config("gpt2-tiny-cpu", scratch)).vocabulary == DEMO_VOCABULARY


@pytest.fixture
def layout() -> Layout:
    return layout_of(load_config("gpt2-large", ["scaling.workers=4", *FIXED]))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    dims = dims_of(load_config(name))
    count = sum(parameter.numel() for parameter in on_meta(dims).parameters())
    assert sum(parameters(dims).values()) == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [512, 1024])
def test_flops_are_those_that_torch_counts(name: str, length: int) -> None:
    dims = dims_of(load_config(name))
    model = on_meta(dims)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64, device="meta")).logits.sum().backward()
    ours = sum(flops(dims, length, length * length, length).values())
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_model_states_of_zero_3_are_those_that_deepspeed_estimates(
    layout: Layout, workers: int
) -> None:
    count = sum(parameters(LARGE).values())
    _, device, _ = estimate_zero3_model_states_mem_needs(
        count, 0, num_gpus_per_node=workers, cpu_offload=False, cpu_offload_params=False
    )
    summing = replace(layout, stage=3, workers=workers, accumulates=True)
    assert sum(model_states(summing, count).values()) == pytest.approx(device, abs=1)


def test_model_states_by_hand(layout: Layout) -> None:
    """ZeRO's own example (Rajbhandari et al. 2020, figure 1): 7.5 billion parameters, 64 GPUs,
    16-bit gradients that nothing sums: 120, 31.4, 16.6 and 1.9 GB."""
    figure = {0: 120, 1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in figure.items():
        if stage == 0:
            continue  # is trained in fp32 here
        one = replace(layout, stage=stage, workers=64, accumulates=False)
        states = sum(model_states(one, 7_500_000_000).values())
        assert states / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_a_billion_and_a_half_parameters() -> None:
    """What the text says of 1.5 B: 6 GB in FP16 (it is 3.1), over 20 GB in all (it is)."""
    facts = estimate(load_config("gpt2-xl"))
    assert sum(facts["parameters"].values()) == 1_557_611_200
    parts = next(row["parts"] for row in facts["memory_gib"] if row["choice"] == "ZeRO-3")
    gigabytes = {name: size * 2**30 / 1e9 for name, size in parts.items()}
    assert gigabytes["weights"] == pytest.approx(3.1, abs=0.05)
    assert gigabytes["Adam moments"] == pytest.approx(12.5, abs=0.05)
    assert gigabytes["master weights"] == pytest.approx(6.2, abs=0.05)


def test_the_block_of_logits_is_that_of_the_loss() -> None:
    assert LOGIT_BLOCK_BYTES == head_nll.BLOCK_BYTES


def test_the_vocabulary_is_read_from_the_tokenizers_file(tmp_path: Path) -> None:
    tokenizer = demo.train_tokenizer(demo.generate(DEMO_RECORDS, 0))
    assert len(tokenizer) == DEMO_VOCABULARY
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    tokenizer.save_pretrained(tmp_path)
    config = load_config("gpt2-tiny-cpu", ["data.path=records.json", f"model.tokenizer={tmp_path}"])
    assert tokens_known(config) == len(tokenizer)


def test_dimensions_of_a_folder(tmp_path: Path) -> None:
    GPT2Config(n_layer=3, n_embd=24, n_head=2, vocab_size=99).save_pretrained(tmp_path)
    config = load_config("gpt2", [f"model.path={tmp_path}"])
    assert dims_of(config) == gpt2_dims(3, 24, 2, 1024, 99)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match="'mamba'"):
        dims_of(config)
    with pytest.raises(UserError, match="not known here"):
        dims_of(load_config("gpt2", ["model.path=someone/something"]))


def test_the_largest_micro_batch_fits_and_one_more_does_not(layout: Layout) -> None:
    for memory in (16.0, 24.0, 80.0):
        most = largest_micro_batch(layout, LARGE, memory)
        assert most > 0
        assert total_gib(at(layout, most), LARGE) <= memory < total_gib(at(layout, most + 1), LARGE)
    assert largest_micro_batch(layout, LARGE, 2.0) == 0


def test_traffic_by_hand(layout: Layout) -> None:
    """2 Psi for stages 0 to 2 and 3 Psi for stage 3 (Rajbhandari et al. 2020, section 7), on a ring
    of 4, with bf16 gradients and weights and one micro-batch."""
    count = sum(parameters(LARGE).values())
    one = replace(layout, workers=4, accumulates=False)
    for stage, elements in ((1, 2), (2, 2), (3, 3)):
        sent = traffic_bytes(replace(one, stage=stage), LARGE, micro_batches=1)
        assert sum(sent.values()) == 2 * elements * count * 3 / 4
    # Two micro-batches: gradients twice, weights gathered for two forwards and two backwards.
    sent = traffic_bytes(replace(one, stage=3), LARGE, micro_batches=2)
    assert sum(sent.values()) == 2 * (2 + 4) * count * 3 / 4
    assert not any(traffic_bytes(replace(one, workers=1), LARGE, 1).values())


def test_scaling(layout: Layout) -> None:
    hardware = Hardware(1e15, None, 1e11)
    weak, strong = scaling(layout, LARGE, 64, hardware)
    assert [time.workers for time in weak] == [2**power for power in range(11)]
    assert {time.compute_s for time in weak} == {weak[0].compute_s}
    assert [time.workers for time in strong] == [1, 2, 4, 8, 16, 32, 64]
    assert strong[3].compute_s == pytest.approx(strong[0].compute_s / 8)
    alone = step_time(replace(layout, workers=1), LARGE, 64, hardware)
    assert alone.traffic_s == 0.0
    assert alone.overlapped_s == alone.in_turn_s == alone.compute_s


def test_only_what_is_computed_twice_counts_twice(layout: Layout) -> None:
    """The layers with activation checkpointing; the logits never."""
    parts = flops(LARGE, 1000, 1000 * layout.record_tokens, 1000)
    once = computed_flops(replace(layout, checkpointing=False), LARGE, 1000)
    assert once == sum(parts.values())
    again = computed_flops(replace(layout, checkpointing=True), LARGE, 1000) - once
    assert again == pytest.approx((parts["linear"] + parts["attention"]) / 3)


def test_a_lower_stage_that_fits_is_named() -> None:
    config = load_config("gpt2-large", ["scaling.workers=4", *FIXED])
    (line,) = estimate(config, device="h100")["advice"]
    assert line.startswith("ZeRO-1 A also fits")
    assert "engine.zero_stage = 1" in line
    (line,) = estimate(config, memory_gib=4.0)["advice"]
    assert "needs" in line
    with pytest.raises(UserError, match="known are b200"):
        estimate(config, device="abacus")


def test_datasheets_are_found_by_cudas_names() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "NVIDIA H100 SXM",
        "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80GB SXM",
        "NVIDIA A100-SXM4-40GB": "NVIDIA A100 40GB SXM",
        "NVIDIA A100 80GB PCIe": "NVIDIA A100 80GB SXM",
        "NVIDIA L40S": "NVIDIA L40S",
        "NVIDIA L4": "NVIDIA L4",
        "Tesla T4": "NVIDIA T4 (fp16)",
        "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090",
    }
    assert {name: device_of(name).name for name in names} == names
    assert device_of("NVIDIA A10G") is None
    assert device_of("Abacus") is None


def test_memory_falls_with_workers_and_model_states_with_the_stage(layout: Layout) -> None:
    count = sum(parameters(LARGE).values())
    for stage in (1, 2, 3):
        totals = [
            sum(memory_bytes(replace(layout, stage=stage, workers=workers), LARGE).values())
            for workers in (4, 8, 64)
        ]
        assert totals == sorted(totals, reverse=True)
    states = [sum(model_states(replace(layout, stage=s), count).values()) for s in (1, 2, 3)]
    assert states[0] > states[1] > states[2]


def test_the_command_needs_neither_torch_nor_ray() -> None:
    code = """
import sys
from raysft.cli.app import app
app(["estimate", "gpt2-xl", "--device", "a100", "--json"], standalone_mode=False)
heavy = {"torch", "ray", "transformers", "deepspeed"} & {*sys.modules}
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["device"] == "NVIDIA A100 40GB SXM"
    assert "attention" in done.stderr
