"""What the finished model answers to held-out records, by every number of workers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from raysft.config.load import load_config
from raysft.data import demo
from raysft.data.template import install_template
from raysft.model import answers
from raysft.model.answers import Answered, Question, judged, share_of_answers
from raysft.runs import events
from raysft.runs.events import Event
from raysft.train.answers import by_folder

NUM_QUESTIONS = 9


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return demo.train_tokenizer(demo.generate(50))


@pytest.fixture(scope="module")
def folder(tokenizer: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    path = tmp_path_factory.mktemp("model")
    install_template(tokenizer, "plain")
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=2, n_embd=32, n_head=2, n_positions=64,  # type: ignore[arg-type]
        initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]
    return path


def asked() -> list[Question]:
    """Of lengths that all differ, so that a batch of them is padded."""
    return [Question(list(range(20, 22 + n)), [30 + n, 31]) for n in range(NUM_QUESTIONS)]


@pytest.mark.parametrize("world_size", [2, 3, 4, 7])
def test_any_number_of_workers_answers_alike(
    folder: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BATCH_SIZE", 2)
    alone = share_of_answers(asked(), by_folder(folder), 0, 1)
    assert sorted(alone) == list(range(NUM_QUESTIONS))
    assert len({one.answer for one in alone.values()}) > 1  # or anything would be equal
    shares = [
        share_of_answers(asked(), by_folder(folder), rank, world_size) for rank in range(world_size)
    ]
    assert sum(map(len, shares)) == NUM_QUESTIONS
    assert {index: text for share in shares for index, text in share.items()} == alone


def test_exact_match_is_of_the_first_records_and_samples_are_shown() -> None:
    found = [Answered("q", str(n), str(n) if n % 2 else "no") for n in range(NUM_QUESTIONS)]
    settings = ["eval.exact_match_records=4", "run.samples=1"]
    heard: list[Event] = []
    outcome = judged(found, load_config("gpt2-tiny-cpu", settings), heard.append)
    assert outcome == {"exact_match": 0.5, "exact_match_records": 4}
    assert heard == [events.Sample("q", "0", "no")]
