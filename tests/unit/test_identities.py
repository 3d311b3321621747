"""What a run goes on with is what it was trained with, wherever it lies now."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from raysft.config.load import load_config, validate
from raysft.data.dataset import prepare
from raysft.data.template import install_template
from raysft.errors import UserError
from raysft.runs import rundir, snapshot
from raysft.runs.events import Event, Warning
from raysft.train.checkpoint import layout
from raysft.verbs.identities import (
    HELD_OUT,
    MODEL,
    TEMPLATE,
    TOKENIZER,
    TRAINED,
    identities,
    identity_of_model,
    known_before,
    require_same,
)
from raysft.verbs.resume import changes
from raysft.verbs.train import check_resume

BEFORE = Path(__file__).parent / "run_of_version_0_1"
ROWS = [{"prompt": f"say {n}", "completion": f"{n} {n}"} for n in range(40)]


def tokenizer_of(tokens: str) -> Any:
    """A letter a token, in this order."""
    vocabulary = {token: index for index, token in enumerate(["<end>", *tokens])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


LETTERS = "say 0123456789\n:"
TEMPLATE_TEXT = (
    "{% for m in messages %}{{ m.content }}:"
    "{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
)


def found_in(
    folder: Path,
    rows: list[dict[str, str]] = ROWS,
    letters: str = LETTERS,
    template: str = "plain",
    *overrides: str,
) -> dict[str, str]:
    folder.mkdir()
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        "gpt2-tiny-cpu",
        [f"data.path={file}", "model.tokenizer=./x", "data.eval_fraction=0.2", *overrides],
    )
    installed = install_template(tokenizer_of(letters), template)
    return identities(config, installed, None, prepare(config, installed))


def changed(before: dict[str, str], now: dict[str, str]) -> set[str]:
    assert before.keys() == now.keys()
    return {name for name in before if before[name] != now[name]}


def test_each_input_is_told_from_another(tmp_path: Path) -> None:
    before = found_in(tmp_path / "before")
    assert before[TRAINED].startswith("32 (")
    assert before[HELD_OUT].startswith("8 (")
    assert changed(before, found_in(tmp_path / "elsewhere")) == set()
    records = {TRAINED, HELD_OUT}
    assert changed(before, found_in(tmp_path / "cut", ROWS[:20])) == records
    turned = [*ROWS[:38], ROWS[39], ROWS[38]]
    assert changed(before, found_in(tmp_path / "order", turned)) & records
    same_size = found_in(tmp_path / "tokens", letters=LETTERS[::-1])
    assert changed(before, same_size) == {TOKENIZER}
    fewer = found_in(tmp_path / "fewer", ROWS, LETTERS, "plain", "eval.max_records=4")
    assert changed(before, fewer) == records


def test_a_template_that_is_edited_is_another(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE_TEXT)
    before = found_in(tmp_path / "before", template=str(file))
    file.write_text(TEMPLATE_TEXT.replace(":", ":\n"))
    now = found_in(tmp_path / "now", template=str(file))
    assert changed(before, now) == {TEMPLATE, TRAINED, HELD_OUT}


def model_in(folder: Path, *overrides: str) -> str | None:
    pretrained = ["model.init=pretrained", "model.shape=none", f"model.path={folder}"]
    config = load_config("gpt2-tiny-cpu", [*pretrained, "model.tokenizer=./x", *overrides])
    return identity_of_model(config.model, None)


def test_a_model_is_known_by_its_config_and_samples_of_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert model_in(folder) is None
    (folder / "config.json").write_text("{}")
    weights = bytearray(1 << 21)
    (folder / "model.safetensors").write_bytes(weights)
    before, scratch = model_in(folder), model_in(folder, "model.init=scratch")
    shutil.copytree(folder, tmp_path / "copy")
    assert model_in(tmp_path / "copy") == before
    for place in (slice(0, 1), slice(1 << 20, (1 << 20) + (1 << 18)), slice(-1, None)):
        other = weights.copy()
        other[place] = b"1" * len(other[place])
        (folder / "model.safetensors").write_bytes(other)
        assert model_in(folder) != before
        assert model_in(folder, "model.init=scratch") == scratch
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{ }")
    assert model_in(folder) != before
    shaped = load_config("gpt2-tiny-cpu", [f"model.path={folder}"])
    assert identity_of_model(shaped.model, None) is None


def run_with(folder: Path, **more: Any) -> Path:
    spec = {"config": load_config("gpt2-tiny-cpu").model_dump(mode="json")}
    rundir.write_run(folder, spec | more)
    return folder


def checkpoint_with(run_dir: Path, known: dict[str, str] | None) -> None:
    checkpoint = run_dir / rundir.CHECKPOINTS / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    snapshot.write(checkpoint.parent, [(1, checkpoint.name)])
    manifest = {"step": 1} | ({"identities": known} if known else {})
    layout.manifest(checkpoint, 0).write_text(json.dumps(manifest))


def test_what_differs_is_refused_or_accepted_and_kept(tmp_path: Path) -> None:
    told: list[Event] = []
    run_dir = run_with(tmp_path / "run", config={})
    require_same(run_dir, {TRAINED: "4, a", TOKENIZER: "9 tokens, b"}, told.append)  # a new run
    now = {TRAINED: "2, c", TOKENIZER: "9 tokens, b"}
    with pytest.raises(UserError) as refused:
        require_same(run_dir, now, told.append)
    said = str(refused.value)
    assert "training records: '4, a' then, '2, c' now" in said
    assert "tokenizer:" not in said
    assert "--accept-changes" in said
    assert "data.path" in said
    assert known_before(run_dir)["identities"][TRAINED] == "4, a"

    run_with(run_dir, **known_before(run_dir), accept_changes=True)
    assert told == []
    require_same(run_dir, now, told.append)
    assert [type(event) for event in told] == [Warning]
    kept = known_before(run_dir)
    assert kept == {
        "identities": now,
        "accepted_changes": ["training records: 4, a then, 2, c now"],
    }
    run_with(run_dir, **kept)
    require_same(run_dir, now, told.append)
    assert known_before(run_dir) == kept


def test_the_checkpoint_knows_better_than_run_json(tmp_path: Path) -> None:
    """Changes were accepted, and the run ended before its next checkpoint."""
    run_dir = run_with(tmp_path / "run", identities={TRAINED: "new"})
    checkpoint_with(run_dir, {TRAINED: "old"})
    assert known_before(run_dir) == {"identities": {TRAINED: "old"}}


def test_a_run_of_before_goes_on_as_before(tmp_path: Path) -> None:
    shutil.copytree(BEFORE, tmp_path / "run")
    assert known_before(tmp_path / "run") == {}
    require_same(tmp_path / "run", {TRAINED: "4, a"}, lambda event: pytest.fail(str(event)))
    assert known_before(tmp_path / "run") == {"identities": {TRAINED: "4, a"}}


@pytest.mark.parametrize("known", [None, {TRAINED: "4, a"}])
def test_paths_may_move_where_content_is_known(
    known: dict[str, str] | None, tmp_path: Path
) -> None:
    run_dir = run_with(tmp_path / "run")
    checkpoint_with(run_dir, known)
    moved = load_config("gpt2-tiny-cpu", ["data.path=moved.jsonl", "model.tokenizer=./x"])
    with pytest.raises(UserError, match=r"model.tokenizer: .* then") as refused:
        check_resume(run_dir, moved)
    assert ("data.path" in str(refused.value)) == (known is None)
    if known is not None:
        checkpoint = snapshot.checkpoints(run_dir)[0]
        manifest = {"step": 1, "identities": known | {TOKENIZER: "b", MODEL: "c"}}
        layout.manifest(checkpoint, 0).write_text(json.dumps(manifest))
        told = check_resume(run_dir, moved)
        assert [line.partition(" was ")[0] for line in told] == ["data.path", "model.tokenizer"]


def test_a_run_of_before_has_its_keys_by_their_names_of_now() -> None:
    """It says `mask_prompt`: equal to a weight of 0, and told where it is another."""
    before = json.loads((BEFORE / "run.json").read_text())["config"]
    assert before["data"]["mask_prompt"] is True
    config = validate(before, where="run.json")
    assert [key for key in changes(before, config) if key.startswith("data.")] == []
    before["data"]["mask_prompt"] = False
    assert changes(before, config)["data.prompt_loss_weight"] == (1.0, 0.0)
