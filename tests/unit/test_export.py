"""The exported folder against the model that was trained, and what it answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    PreTrainedConfig,
)

from raysft.config.load import load_config
from raysft.data import demo
from raysft.errors import RunError
from raysft.model.generate import answer, load
from raysft.model.load import load_model_config, load_template
from raysft.train.export import export

GPT2 = GPT2Config(vocab_size=50, n_layer=1, n_embd=16, n_head=2, n_positions=32)
# Its activation has buffers that are saved with the weights.
APERTUS = ApertusConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=32, pad_token_id=None,
)  # fmt: skip
PROBE = torch.arange(1, 20)


class Engine:
    """What export() asks of a DeepSpeed engine, around a whole model."""

    device = torch.device("cpu")

    def __init__(self, module: Any, also: float = 0.0) -> None:
        self.module, self.also = module, also

    def __call__(self, **inputs: Any) -> Any:
        output = self.module(**inputs)
        output.logits = output.logits + self.also * torch.randn_like(output.logits)
        return output

    def zero_optimization_stage(self) -> int:
        return 1

    def empty_partition_cache(self) -> None: ...

    def eval(self) -> None: ...

    def train(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return demo.train_tokenizer(demo.generate(50))


@pytest.mark.parametrize("config", [GPT2, APERTUS], ids=["gpt2", "apertus, with buffers"])
def test_what_was_trained_is_what_the_folder_computes(
    tmp_path: Path, tokenizer: Any, config: PreTrainedConfig
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert export(Engine(model), tokenizer, tmp_path / "model", PROBE) == 0.0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_folder_that_computes_something_else_is_no_result(tmp_path: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_config(GPT2).eval()
    with pytest.raises(RunError, match=r"does not compute what was trained.*packing = false"):
        export(Engine(model, also=0.1), tokenizer, tmp_path / "model", PROBE)
    assert not (tmp_path / "model").exists()


def test_an_answer_is_the_likeliest_whatever_the_base_model_samples(
    tmp_path: Path, tokenizer: Any
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=1.8, no_repeat_ngram_size=1
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, template = load(str(tmp_path))
    ids = [5, 6, 7]
    (found,) = answer(loaded, template, [ids], max_new_tokens=12)
    expected = list(ids)
    with torch.no_grad():
        while len(expected) < 15 and expected[-1] not in template.stop_ids:
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert found == template.tokenizer.decode(expected[3:], skip_special_tokens=True)


def test_the_end_token_has_a_gradient_where_it_pads_too(tmp_path: Path, tokenizer: Any) -> None:
    """Half of all recipes set it so. Nothing here pads by id, and torch would drop it."""
    tokenizer.pad_token = tokenizer.eos_token
    GPT2.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = [f"model.path={tmp_path}", "model.shape=none", f"model.tokenizer={tmp_path}"]
    config = load_config("gpt2-tiny-cpu", ["data.path=x", "batch.seq_len=32", *settings])
    hf_config = load_model_config(config, load_template(config))
    assert hf_config.eos_token_id == tokenizer.eos_token_id
    assert hf_config.pad_token_id is None
    assert AutoModelForCausalLM.from_config(hf_config).transformer.wte.padding_idx is None
