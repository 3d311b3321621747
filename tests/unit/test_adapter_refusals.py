"""What does not go with an adapter is told, with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from raysft.config.load import load_config, validate
from raysft.data import demo
from raysft.errors import RunError, UserError
from raysft.model.files import base_of, check_files, is_adapter
from raysft.model.generate import load
from raysft.model.hub import push
from raysft.model.load import load_model_config, load_template
from raysft.runs import rundir
from raysft.train.checkpoint.export import export_checkpoint
from raysft.verbs import plan
from raysft.verbs.check import check_adapter
from raysft.verbs.registry import VERBS
from raysft.verbs.train import check_resume


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tokenizer = demo.train_tokenizer(demo.generate(64, seed=5))
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_on(base: Path, *overrides: str) -> Any:
    usual = ("model.init=pretrained", f"model.path={base}", "model.tokenizer=none")
    return load_config("gpt2-tiny-cpu", [*usual, "batch.seq_len=64", "adapter.rank=4", *overrides])


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    described = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("verb", ["reward", "ppo"])
def test_verbs_that_train_a_new_head(base: Path, verb: str) -> None:
    with pytest.raises(UserError, match=f"raysft {verb} trains all weights, and has no adapters"):
        VERBS[verb].plan(config_on(base))


def test_the_plan_says_what_is_trained(base: Path) -> None:
    rows = dict(VERBS["train"].plan(config_on(base, "adapter.variant=dora")))
    total = sum(p.numel() for p in GPT2LMHeadModel.from_pretrained(base).parameters())
    trained = 4 * 16 * (4 + 2 + 5 + 5) + 16 * (3 + 1 + 4 + 1)
    total += trained
    assert rows["adapter"] == (
        f"DoRA of rank 4, alpha 8, on every linear layer: trains {trained:,} of {total:,} "
        f"parameters ({trained / total:.2%})"
    )
    assert not plan.adapter_equation(load_config("gpt2-tiny-cpu"))


def test_new_tokens(base: Path) -> None:
    config = config_on(base, "data.template=chatml")
    with pytest.raises(UserError, match="adds 2 tokens that the model does not know"):
        load_model_config(config, load_template(config))


def test_a_wrong_target_before_a_run_starts(base: Path) -> None:
    with pytest.raises(UserError, match="'q_proj' is no linear layer"):
        check_adapter(config_on(base, 'adapter.target_modules=["q_proj"]'))
    check_adapter(config_on(base, 'adapter.target_modules=["c_attn"]'))


def test_an_adapter_as_the_model(base: Path, adapter: Path) -> None:
    assert is_adapter(adapter)
    assert not is_adapter(base)
    assert base_of(adapter) == str(base)
    config = config_on(adapter)
    with pytest.raises(UserError, match="is an adapter, without the model that it belongs to"):
        check_files(config, adapter, None)


def test_an_adapter_whose_model_is_gone(base: Path, adapter: Path) -> None:
    demo.train_tokenizer(demo.generate(64, seed=5)).save_pretrained(adapter)
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"there is no folder .*base"):
        load(str(adapter))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not name the model"):
        load(str(adapter))


def test_a_push_of_what_others_cannot_load(adapter: Path) -> None:
    with pytest.raises(RunError, match="a folder of this machine: export it with --merge"):
        push(adapter, "somebody/adapter", private=False, write_card=lambda _: None)


def test_a_run_of_before_goes_on_and_one_with_an_adapter_keeps_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysft.train.checkpoint.repair.require_checkpoint", lambda _: None)
    run = tmp_path / "run"
    run.mkdir()

    def resumed(before: dict[str, Any], config: Any) -> list[str]:
        rundir.write_json(run / rundir.RUN, {"verb": "train", "config": before, "stamp": {}})
        return check_resume(run, config)

    now = config_on(base)
    raw = now.model_dump(mode="json")
    older = {name: value for name, value in raw.items() if name != "adapter"}
    assert resumed(older, validate(older, "older")) == []
    assert resumed(raw, config_on(base, "adapter.merge=false")) == []
    with pytest.raises(UserError, match=r"adapter\.rank: 4 then, 8 now"):
        resumed(raw, config_on(base, "adapter.rank=8"))
    with pytest.raises(UserError, match=r"adapter\.rank: None then, 4 now"):
        resumed(older, now)


def test_export_of_a_run_without_one(base: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoints/checkpoint_1"
    checkpoint.mkdir(parents=True)
    raw = validate({**config_on(base).model_dump(mode="json"), "adapter": {}}, "plain")
    spec = {"verb": "train", "config": raw.model_dump(mode="json"), "stamp": {}}
    rundir.write_json(tmp_path / "run" / rundir.RUN, spec)
    with pytest.raises(UserError, match="has trained no adapter: leave out --merge"):
        export_checkpoint(checkpoint, tmp_path / "to", merged=False)
