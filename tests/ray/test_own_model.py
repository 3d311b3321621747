"""From `raysft init` to the first step: README's three commands, on a pretrained model."""

import os
import shlex
import shutil
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file

from raysft.config.load import load_config
from tests import documented
from tests.conftest import run_raysft

SHARED = Path(os.environ.get("RAYSFT_TEST_INPUTS", Path(__file__).parents[3] / "shared"))
MODEL = SHARED / "models/mgm-gpt2-8L256"  # 8.9 M parameters, trained; it comes without a tokenizer
RECORDS = SHARED / "data/gsm8k_test.jsonl"

pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs real inputs: set RAYSFT_TEST_INPUTS to their folder"
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The files that README names."""
    from raysft.data import demo

    folder = tmp_path / "my-model"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(MODEL / file, folder / file)
    demo.train_tokenizer(demo.generate(64, seed=5)).save_pretrained(folder)
    with RECORDS.open() as lines:
        (tmp_path / "records.jsonl").write_text("".join(islice(lines, 100)))
    return tmp_path


def test_three_commands_lead_to_the_first_step(here: Path) -> None:
    """Without a cluster that is there already: its workers would look for ./my-model elsewhere."""
    shown = documented.commands("raysft")
    first = next(index for index, words in enumerate(shown) if words[0] == "init")
    init, preview, train = shown[first : first + 3]
    assert (preview[:2], train[0]) == (["data", "preview"], "train")

    begun = run_raysft(*init, cwd=here)
    assert begun.code == 0, begun.stderr
    assert begun.stdout.splitlines() == [shlex.join(["raysft", *w]) for w in (preview, train)]
    config = load_config(str(here / "my.toml"))
    assert (config.batch.seq_len, config.batch.global_batch_size) == (512, 8)

    looked = run_raysft(*preview, cwd=here)
    assert looked.code == 0, looked.stderr
    assert "records.jsonl line 3, prompt_completion: " in looked.stdout

    brief = ("run.max_steps=2", "run.samples=0", "checkpoint.every_steps=0", "eval.max_records=4")
    sets = [word for setting in brief for word in ("--set", setting)]
    trained = run_raysft(*train, *sets, "--name", "first", "--json", cwd=here)
    assert trained.code == 0, trained.stderr
    assert trained.summary["steps"] == 2
    assert trained.summary["num_records"] == 96
    before = load_file(here / "my-model/model.safetensors")["transformer.wte.weight"]
    after = load_file(here / "runs/first/model/model.safetensors")["transformer.wte.weight"].float()
    # Two steps of 2e-5 at most, and bf16's rounding: random weights would differ by 140 %.
    assert 0 < (after - before).norm() / before.norm() < 0.02

    again = run_raysft("train", "runs/first", "--dry-run", cwd=here)
    assert again.code == 0, again.stderr
    assert load_config(str(here / "runs/first")).run.max_steps == 2
