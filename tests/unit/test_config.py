import json
from importlib.resources import files
from pathlib import Path

import pytest

from raysft.config.data import Source
from raysft.config.load import load_config, parse_override, preset_names, validate, with_overrides
from raysft.config.renamed import hints
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.verbs.train import equations


def error_of(*overrides: str, source: str = "gpt2-tiny-cpu") -> str:
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value)


# What presets for a model of one's own leave to --set.
NEEDED = dict.fromkeys(
    ("pretrained-cpu", "pretrained-gpu"), ("model.path=./my-model", "data.path=records.jsonl")
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_has_a_plan(name: str) -> None:
    config = load_config(name, NEEDED.get(name, ()))
    assert dict(equations(config))["global batch"].startswith(str(config.batch.global_batch_size))


@pytest.mark.parametrize("name", NEEDED)
def test_a_preset_for_a_model_of_ones_own_says_what_it_needs(name: str) -> None:
    message = error_of(source=name)
    assert "model: path is missing" in message
    assert "data.path: this key is required" in message
    assert load_config(name, NEEDED[name]).on_gpu == (name == "pretrained-gpu")


def test_the_presets_that_users_rely_on_exist() -> None:
    assert {"gpt2-tiny-cpu", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"} <= set(preset_names())


@pytest.mark.parametrize(
    ("name", "millions"),
    [("gpt2", 124), ("gpt2-medium", 355), ("gpt2-large", 774), ("gpt2-xl", 1558)],
)
def test_preset_shapes_are_the_published_models(name: str, millions: int) -> None:
    shape = load_config(name).model.shape
    assert shape is not None
    d = shape.n_embd
    blocks = shape.n_layer * (12 * d**2 + 13 * d)
    parameters = 50257 * d + shape.n_positions * d + blocks + 2 * d
    assert round(parameters / 1e6) == millions


def test_unknown_key_is_named_with_the_nearest_known_one() -> None:
    message = error_of("optim.learning_rate=1e-5", "batch.seqlen=64", "model.shape.n_layers=2")
    assert "optim.learning_rate: no such key" in message
    assert "batch.seqlen: no such key; did you mean 'seq_len'?" in message
    assert "model.shape.n_layers: no such key; did you mean 'n_layer'?" in message


def test_unknown_section_is_named_with_the_nearest_known_one() -> None:
    assert "shedule: no such key; did you mean 'schedule'?" in error_of("shedule.warmup_ratio=0.1")


def test_wrong_types_and_values_say_key_and_value() -> None:
    message = error_of("optim.lr=fast", "engine.zero_stage=4", "scaling.cpus_per_worker=0")
    assert "optim.lr: input should be a valid number, but it is 'fast'" in message
    assert "engine.zero_stage: input should be 0, 1, 2, 3 or 'auto', but it is 4" in message
    assert "scaling.cpus_per_worker: input should be greater than or equal to 1" in message


@pytest.mark.parametrize("value", ["0", "[2, 1]", "[1, 2, 3]", "[0, 2]", "true", "many"])
def test_workers_are_a_number_or_a_range(value: str) -> None:
    message = error_of(f"scaling.workers={value}")
    assert "scaling.workers: " in message
    assert "is neither a number of workers, such as 2, nor [min, max]" in message


def test_a_range_of_workers_must_divide_the_batch_and_take_checkpoints() -> None:
    padded = ("batch.packing=false", "batch.micro_batch_size=8")
    assert "scaling.workers 3 x" in error_of("scaling.workers=[2, 4]", *padded)
    without = error_of("scaling.workers=[1, 2]", "checkpoint.every_steps=0")
    assert "set checkpoint.every_steps above 0" in without
    config = load_config("gpt2-tiny-cpu", ["scaling.workers=[1, 2]", *padded])
    assert (config.scaling.fewest, config.scaling.most, config.scaling.elastic) == (1, 2, True)
    assert load_config("gpt2-tiny-cpu", ["scaling.workers=[2, 2]"]).scaling.workers == 2
    assert [config.at(workers).grad_accum_steps for workers in (1, 2)] == [8, 4]


def test_a_number_in_quotes_is_not_a_number() -> None:
    assert "optim.lr" in error_of('optim.lr="1e-5"')


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("batch.tokens_per_micro_batch=511", "511 is less than seq_len 512"),
        ("model.attention=eager", 'set batch.packing = false, or model.attention = "sdpa"'),
        ("batch.seq_len=1024", "batch.seq_len 1024 is past model.shape.n_positions 512"),
        ("model.shape.n_head=3", "n_embd 128 is not a multiple of n_head 3"),
        ("schedule.decay_ratio=0.1", 'decay_ratio is of name = "wsd"'),
        ("engine.offload_params=true", None),
        ("data.path=other.json", "set model.tokenizer"),
        ("model.init=pretrained", "path is missing"),
        ("run.storage=s3://bucket/runs", "run: storage is a folder on this machine"),
        ("run.name=a/b", "run.name: 'a/b' is no name for a run"),
        ("run.name=", "run.name: '' is no name for a run"),
        ("run.name=..", "run.name: '..' is no name for a run"),
        ("data.path=none", "data.path: this key is required"),
        ("optim.skip_spikes=1.0", "optim: skip_spikes 1 would skip half of all steps or more"),
    ],
)
def test_keys_that_do_not_go_together(override: str, part: str | None) -> None:
    if part is None:
        assert load_config("gpt2-tiny-cpu", [override]).engine.offload_params
        part = "offload_params needs zero_stage 3"
        assert part in error_of(override, "engine.zero_stage=2")
    else:
        assert part in error_of(override)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_0_is_for_fp32(precision: str) -> None:
    message = error_of("engine.zero_stage=0", f"engine.precision={precision}")
    assert "zero_stage 0 trains in fp32 only" in message
    assert load_config("gpt2-tiny-cpu", ["engine.zero_stage=0"]).engine.precision == "fp32"


def test_both_kinds_of_warmup_are_refused() -> None:
    assert "not both" in error_of("schedule.warmup_ratio=0.1", "schedule.warmup_steps=5")


def test_no_such_preset_lists_them() -> None:
    message = error_of(source="gpt2-tiny")
    assert "did you mean 'gpt2-tiny-cpu'?" in message
    assert "gpt2-xl" in message


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[optim]\nlr = = 3\n")
    message = error_of(source=str(path))
    assert "broken.toml is not valid TOML" in message
    assert "line 2" in message


def test_overrides_read_toml_values_and_plain_strings() -> None:
    assert parse_override("optim.lr=1e-5") == ("optim.lr", 1e-5)
    assert parse_override("optim.betas=[0.9, 0.99]") == ("optim.betas", [0.9, 0.99])
    assert parse_override("data.path=../some data/x.json") == ("data.path", "../some data/x.json")
    assert parse_override("run.name=a=b") == ("run.name", "a=b")
    assert parse_override("run.max_steps=none") == ("run.max_steps", None)
    with pytest.raises(UserError, match=r"section\.key=value"):
        parse_override("lr")


def test_overrides_leave_the_source_as_it_was() -> None:
    raw = {"optim": {"lr": 1.0}, "run": {"max_steps": 3}}
    new = {"optim.lr": 2.0, "model.shape.n_layer": 1, "run.max_steps": None}
    changed = with_overrides(raw, new)
    assert changed == {"optim": {"lr": 2.0}, "model": {"shape": {"n_layer": 1}}, "run": {}}
    assert raw == {"optim": {"lr": 1.0}, "run": {"max_steps": 3}}


def test_a_config_survives_run_json() -> None:
    config = load_config("gpt2-large", ["data.path=['a.json', 'b.json']"])
    assert validate(json.loads(config.model_dump_json()), where="run.json") == config


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("gpt2").optim.lr = 1.0  # type: ignore[misc]


def test_padded_micro_batches_divide_the_global_batch() -> None:
    padded = ["batch.packing=false", "batch.micro_batch_size=2"]
    config = load_config("gpt2-tiny-cpu", padded)
    assert config.grad_accum_steps == config.batch.global_batch_size // (2 * 2)
    assert "33 is not a multiple of scaling.workers 2 x batch.micro" in error_of(
        "batch.global_batch_size=33", *padded
    )


def test_preset_files_are_all_loaded() -> None:
    shipped = [p.name for p in (files("raysft") / "presets").iterdir()]
    assert sorted(f"{name}.toml" for name in preset_names()) == sorted(shipped)
    assert isinstance(load_config("gpt2"), Config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.path=[{path="x", wieght=2}]', "data.path.0.wieght: no such key; did you mean 'we"),
        ('data.path=["a", {path="x", fields={promt="q"}}]', "data.path.1.fields.promt: no such"),
        ("data.eval_path=[{weight=2}]", "data.eval_path.0.path: this key is required"),
    ],
)
def test_a_wrong_key_is_the_one_thing_told(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("gpt2-tiny-cpu", [override])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(
        "gpt2-tiny-cpu",
        ["run.storage=~/runs", 'data.path=["~/a", {path="~/b"}]', "data.eval_path=~/c",
         "data.template=~/t.jinja", "model.path=~/m", "model.tokenizer=~/k"],
    )  # fmt: skip
    assert config.run.storage == "/home/me/runs"
    assert isinstance(config.data.path, tuple)
    assert config.data.path[0] == "/home/me/a"
    assert isinstance(config.data.path[1], Source)
    assert config.data.path[1].path == "/home/me/b"
    found = (config.data.eval_path, config.data.template, config.model.path, config.model.tokenizer)
    assert found == ("/home/me/c", "/home/me/t.jinja", "/home/me/m", "/home/me/k")


@pytest.mark.parametrize(("masks", "weight"), [("true", 0.0), ("false", 1.0)])
def test_the_old_spelling_of_the_prompts_weight_is_read(masks: str, weight: float) -> None:
    config = load_config("gpt2-tiny-cpu", [f"data.mask_prompt={masks}"])
    assert config.data.prompt_loss_weight == weight
    raw = {"model": {}, "data": {"mask_prompt": masks == "true"}}
    (hint,) = hints(raw)
    assert hint.endswith(f"write data.prompt_loss_weight = {weight:g}")
    assert hints(config.model_dump()) == []


def test_both_spellings_at_once_are_refused() -> None:
    message = error_of("data.mask_prompt=true", "data.prompt_loss_weight=0.5")
    assert "data.mask_prompt is the old spelling of data.prompt_loss_weight" in message
    assert "mask_prompt 'maybe' is neither true nor false" in error_of("data.mask_prompt=maybe")
    assert "less than or equal to 1" in error_of("data.prompt_loss_weight=1.5")


@pytest.mark.parametrize("asked", ["checkpoint.keep_best=true", "eval.patience=2"])
@pytest.mark.parametrize("missing", ["eval.every_steps=0", "data.eval_fraction=0"])
def test_a_best_model_needs_evaluations(asked: str, missing: str) -> None:
    message = error_of(asked, missing)
    assert f"{asked.partition('=')[0]} goes by the held-out loss along the run" in message


@pytest.mark.parametrize(
    "missing",
    ["eval.generate_every_steps=0", "eval.exact_match_records=0", "data.eval_fraction=0"],
)
def test_the_best_by_exact_match_needs_answers(missing: str) -> None:
    asked = ("checkpoint.keep_best=exact_match", "eval.generate_every_steps=5")
    assert "goes by answers along the run: set eval.gen" in error_of(*asked, missing)
    load_config("gpt2-tiny-cpu", asked)
