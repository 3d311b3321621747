"""Which models are taken, with which weights and which noise; and how a fault of theirs is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
)

from raysft.config.load import load_config
from raysft.errors import RunError, UserError
from raysft.model.dropout import dropouts, set_dropout, set_module_dropout
from raysft.model.initialise import from_scratch, initialise
from raysft.model.load import load_from_hub_or_folder, load_weights
from raysft.model.text_part import text_part
from raysft.runs.events import Event, Warning
from raysft.train.model_fault import told_of_the_model
from raysft.train.probe import exact_layout
from raysft.verbs.inputs import require_attention
from tests.model_types import VOCABULARY, Engine, built, nested, small_config

IDS = torch.arange(3, 20)[None]
FP32 = {"dtype": torch.float32}


@pytest.mark.parametrize(
    ("model_type", "noises"),
    [
        ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
        ("seed_oss", {"residual_dropout": 0.3, "attention_dropout": 0.3}),
        ("starcoder2", {"residual_dropout": 0.3, "embedding_dropout": 0.3}),
        ("phimoe", {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3}),
        ("biogpt", {"layerdrop": 0.5, "activation_dropout": 0.3}),
        ("gpt_neo", {"resid_dropout": 0.3, "embed_dropout": 0.3}),
        ("doge", {"hidden_dropout": 0.3}),
        ("gpt_neox", {"hidden_dropout": 1, "attention_dropout": 0.3}),  # as JSON may have it
    ],
)
def test_no_noise_is_left_without_dropout(model_type: str, noises: dict[str, float]) -> None:
    hf_config = small_config(model_type)
    for name, value in noises.items():
        assert hasattr(hf_config, name)
        vars(hf_config)[name] = value
    set_dropout(hf_config, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_config).train()
    with torch.no_grad():
        first, second = (model(input_ids=IDS, use_cache=False).logits for _ in range(2))
        calm = model.eval()(input_ids=IDS, use_cache=False).logits
    assert torch.equal(first, second)
    torch.testing.assert_close(first, calm)


def test_dropout_reaches_configs_in_configs_and_modules() -> None:
    mpt = MptConfig(emb_pdrop=0.2, attn_config={"attn_pdrop": 1})
    set_dropout(mpt, 0.0)
    assert (mpt.emb_pdrop, mpt.attn_config.attn_pdrop) == (0.0, 0)
    with pytest.raises(UserError, match=r"model\.dropout 0\.1: MptAttentionConfig takes no such"):
        set_dropout(mpt, 0.1)
    phimoe = small_config("phimoe")
    set_dropout(phimoe, 0.1)
    assert phimoe.attention_dropout == 0.1
    assert phimoe.router_jitter_noise == type(phimoe)().router_jitter_noise  # no probability
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    set_module_dropout(module, 0.0)
    assert [one.p for one in dropouts(module)] == [0.0]


@pytest.mark.parametrize("model_type", ["gemma3", "mistral3", "llava"])
def test_the_text_of_a_model_for_images_is_taken_exactly(tmp_path: Path, model_type: str) -> None:
    torch.manual_seed(0)
    published = AutoModelForImageTextToText.from_config(nested(model_type)).eval()
    published.save_pretrained(tmp_path)
    hf_config = text_part(AutoConfig.from_pretrained(tmp_path), str(tmp_path))
    assert hf_config.vocab_size == VOCABULARY
    model = load_weights(str(tmp_path), hf_config, FP32).eval()
    with torch.no_grad():
        found, wanted = (one(input_ids=IDS).logits for one in (model, published))
    torch.testing.assert_close(found, wanted)
    model.save_pretrained(tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, wanted)


@pytest.mark.parametrize(
    ("hf_config", "part"),
    [
        (CONFIG_MAPPING["qwen2_5_vl"](), "'qwen2_5_vl', and its text of type 'qwen2_5_vl_text'"),
        (
            CONFIG_MAPPING["t5"](),
            "of type 't5', for which transformers has no causal language",
        ),
    ],
)
def test_a_model_that_is_no_language_model_is_refused(hf_config: Any, part: str) -> None:
    with pytest.raises(UserError, match=r"model\.path: folder is of type") as refused:
        text_part(hf_config, "folder")
    assert part in str(refused.value)


def test_weights_that_are_not_there_are_no_random_ones(tmp_path: Path) -> None:
    small = GPT2Config(vocab_size=61, n_layer=1, n_embd=32, n_head=2, n_positions=64)
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    small.n_layer = 2
    with pytest.raises(UserError, match=r"lacks 12 weights of GPT2LMHeadModel, such as transf"):
        load_weights(str(tmp_path), small, FP32)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": "gpt2", "n_layer": "two"}', "{"])
def test_a_config_that_is_none_is_one_message(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"^model\.path: .* does not load: "):
        load_from_hub_or_folder(AutoConfig, str(tmp_path), "model.path")


def test_one_seed_gives_one_set_of_weights() -> None:
    def weights(seed: int, drawn_before: int) -> list[torch.Tensor]:
        torch.rand(drawn_before)
        model = AutoModelForCausalLM.from_config(small_config("gpt2"))
        initialise(model, seed)
        return list(model.parameters())

    first, same, other = weights(1, 0), weights(1, 7), weights(2, 0)
    assert all(map(torch.equal, first, same))
    assert not torch.equal(first[0], other[0])


def test_a_model_that_fails_on_packs_is_padded() -> None:
    transformers.logging.set_verbosity_error()
    config, model = built(small_config("doge"))
    told: list[Event] = []
    layout = exact_layout(config, Engine(model), VOCABULARY, 64, told.append)
    assert not layout.batch.packing
    assert isinstance(told[0], Warning)
    assert (
        "its forward pass ends in ValueError: packed records take no attention mask"
        in told[0].message
    )


@pytest.mark.parametrize(
    "error", [AttributeError("no attribute 'to'"), RuntimeError("view size is not compatible")]
)
def test_a_fault_of_the_model_names_it(error: Exception) -> None:
    expected = f"of type 'gpt2' fails before .*{error}"
    with pytest.raises(UserError, match=expected) as told, told_of_the_model(GPT2Config()):
        raise error
    assert told.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[gloo/transport] Connection closed by peer"),
        RuntimeError("CUDA error: an illegal memory access"),
        OSError("the disk"),
        RunError("told already"),
    ],
)
def test_what_another_start_may_heal_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as same, told_of_the_model(GPT2Config()):
        raise error
    assert same.value is error


def test_a_kernel_that_is_not_here_is_told() -> None:
    require_attention("sdpa")
    with pytest.raises(UserError, match="needs the package flash-attn"):
        require_attention("flash_attention_2")
    for override in ("engine.precision=bf16", "scaling.gpus_per_worker=1"):
        settings = ["model.attention=flash_attention_2", "engine.precision=fp32", override]
        with pytest.raises(UserError, match="computes on a GPU, in bf16 or fp16"):
            load_config("gpt2-tiny-cpu", settings)


class WithAScale(GPT2LMHeadModel):
    """Of whose weights transformers' initialisation leaves one as the model made it."""

    made = 0

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        WithAScale.made += 1
        self.scale = torch.nn.Parameter(torch.full((3,), 7.0))

    @classmethod
    def from_config(cls, config: GPT2Config, **options: Any) -> Any:
        return cls._from_config(config, **options)


def test_a_weight_that_only_its_model_sets_is_there() -> None:
    """Where weights are drawn once, what nobody draws would be whatever was in memory."""
    shape = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)
    found = from_scratch(WithAScale, shape, {"dtype": torch.float32}, 3)
    assert WithAScale.made == 2
    assert found.scale.tolist() == [7.0] * 3
    wanted = from_scratch(AutoModelForCausalLM, shape, {"dtype": torch.float32}, 3)
    for name, weight in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert found.lm_head.weight is found.transformer.wte.weight
