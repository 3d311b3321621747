"""Real instruction data with the real GPT-2 tokenizer, where they are at hand."""

import os
from pathlib import Path

import pytest

from raysft.config.load import load_config
from raysft.config.schema import Config
from raysft.data.dataset import Prepared, prepare
from raysft.data.pipeline import parse
from raysft.data.read import read_chunks
from raysft.data.recipe import make_recipe
from raysft.data.sources import sources
from raysft.data.template import prompt_segments
from raysft.data.tokenize import encode, encode_prompt
from raysft.model.load import load_template
from tests.conftest import run_raysft
from tests.unit.test_template import OTHERS

SHARED = Path(os.environ.get("RAYSFT_TEST_INPUTS", Path(__file__).parents[3] / "shared"))
TOKENIZER = SHARED / "models/gpt2-tokenizer"

pytestmark = pytest.mark.skipif(
    not TOKENIZER.is_dir(), reason="needs real inputs: set RAYSFT_TEST_INPUTS to their folder"
)


FILES = {
    "gpteacher_codegen.json": ("alpaca", 4535),
    "gsm8k_test.jsonl": ("prompt_completion", 1319),
    "self_instruct_seed_tasks.jsonl": ("self_instruct", 175),
    "fastchat_dummy_conversation.json": ("sharegpt", 500),
    "llamafactory_glaive_toolcall_en_demo.json": ("sharegpt", 300),
}


def config_for(name: str, *overrides: str) -> Config:
    return load_config(
        "gpt2-tiny-cpu",
        [
            f"data.path={SHARED / 'data' / name}",
            f"model.tokenizer={TOKENIZER}",
            "data.eval_fraction=0",
            *overrides,
        ],
    )


@pytest.mark.parametrize("name", FILES)
def test_every_record_is_read_and_ends_with_a_supervised_end_token(name: str) -> None:
    config = config_for(name)
    template = load_template(config)
    data: Prepared = prepare(config, template)
    tokenised, end = data.tokenised, template.tokenizer.eos_token_id
    assert (tokenised.counts.formats, tokenised.counts.num_read) == (
        (FILES[name][0],),
        FILES[name][1],
    )
    assert not tokenised.counts.dropped
    for index, record in enumerate(tokenised.records):
        ids, mask = data.train.tokens(index), data.train.mask(index)
        assert len(ids) <= 512
        assert not mask[0]
        assert mask[-1]
        assert (ids[-1] == end) == record["ended"]
        # Exactly one end token an answer, and it is supervised.
        assert mask[ids == end].all()
        if FILES[name][0] != "sharegpt":
            assert (ids == end).sum() == record["ended"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("template_name", ["plain", "alpaca", "chatml", "trimming"])
def test_prompts_are_the_same_in_training_and_generation(
    tmp_path: Path, name: str, template_name: str
) -> None:
    """For every answer of every record."""
    if template_name in OTHERS:
        path = tmp_path / "t.jinja"
        path.write_text(
            OTHERS[template_name].replace("<|start|>", "").replace("<|end|>", "<|endoftext|>")
        )
        template_name = str(path)
    config = config_for(name, f"data.template={template_name}")
    template = load_template(config)
    parts = sources(config.data, config.data.path)
    recipe = make_recipe(config, parts, template)
    checked = 0
    for chunk in read_chunks(parts[0], 0, seed=0):
        drafts = [draft for value in chunk.values for draft in parse(value, recipe, 0)]
        examples = encode(template, [draft.segments for draft in drafts])
        for draft, example in zip(drafts, examples, strict=True):
            conversation = draft.conversation
            turns = [i for i, message in enumerate(conversation) if message.role == "assistant"]
            for turn, (begin, _) in zip(turns, example.answers, strict=True):
                prompt = encode_prompt(template, prompt_segments(conversation[:turn], template))
                assert prompt == example.input_ids[:begin].tolist()
                checked += 1
    assert checked >= FILES[name][1]


def test_real_pairs_are_read_without_a_setting() -> None:
    config = config_for("llamafactory_dpo_en_demo.json", "batch.seq_len=512")
    template = load_template(config)
    found = prepare(config, template, pairs=True)
    assert (found.tokenised.counts.formats, len(found.train)) == (("preference",), 300)
    assert not found.tokenised.counts.dropped
    data, end = found.train, template.tokenizer.eos_token_id
    assert data.chosen is not None
    assert data.parts.max() <= 512
    for index, border in enumerate(data.chosen.tolist()):
        halves = data.tokens(index)[:border], data.tokens(index)[border:]
        masks = data.mask(index)[:border], data.mask(index)[border:]
        leads = [int(mask.argmax()) for mask in masks]
        assert leads[0] == leads[1] > 0
        assert halves[0][: leads[0]].tolist() == halves[1][: leads[0]].tolist()
        for half, mask in zip(halves, masks, strict=True):
            assert mask[leads[0] :].all()
            assert half[-1] == end or len(half) == 512


def test_preference_pairs_are_told_as_such(tmp_path: Path) -> None:
    path = SHARED / "data/llamafactory_dpo_en_demo.json"
    sets = ("--set", f"data.path={path}", "--set", f"model.tokenizer={TOKENIZER}")
    outcome = run_raysft("train", "gpt2-tiny-cpu", *sets, cwd=tmp_path)
    assert outcome.code == 2
    assert "preference pairs" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_all_files_train_as_one_mixture(tmp_path: Path) -> None:
    paths = ", ".join(f'"{SHARED / "data" / name}"' for name in FILES)
    overrides = [f"data.path=[{paths}]", f"model.tokenizer={TOKENIZER}", "run.max_steps=2"]
    overrides += ["batch.micro_batch_size=2", "batch.global_batch_size=4", "run.samples=1"]
    overrides += ["eval.max_records=8", "eval.exact_match_records=0", "checkpoint.every_steps=0"]
    sets = [word for override in overrides for word in ("--set", override)]
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--json", *sets, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    data = outcome.summary["data"]
    assert [source["records"] for source in data["sources"]] == [n for _, n in FILES.values()]
    assert outcome.summary["eval_loss_last"] < outcome.summary["eval_loss_first"]


def test_training_lowers_the_held_out_loss(tmp_path: Path) -> None:
    overrides = [
        f"data.path={SHARED / 'data/gpteacher_codegen.json'}",
        f"model.tokenizer={TOKENIZER}",
        "run.max_steps=4",
        "run.samples=0",
        "batch.micro_batch_size=4",
        "batch.global_batch_size=8",
        "eval.max_records=16",
        "eval.exact_match_records=0",
        "checkpoint.every_steps=0",
    ]
    sets = [word for override in overrides for word in ("--set", override)]
    outcome = run_raysft("train", "gpt2-tiny-cpu", "--json", *sets, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    summary = outcome.summary
    assert summary["eval_loss_last"] < summary["eval_loss_first"] - 0.5
