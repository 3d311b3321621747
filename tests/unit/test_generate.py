"""Answers of `raysft generate`, against transformers' own `generate` on the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
)

from raysft.data import demo
from raysft.data.prompts import conversations, read_prompts
from raysft.data.template import install_template
from raysft.errors import UserError
from raysft.model.generate import (
    How,
    as_answer,
    encoded,
    generate_all,
    generate_ids,
    load_as_saved,
    positions_of,
)
from raysft.model.streaming import Pieces, words_of
from tests.conftest import run_raysft

QUESTIONS = ["pear", "apple pear moon", "Count apple from 3 to 7.", "x" * 40, "rose fish"]


def small_model(kind: str, vocabulary: int) -> Any:
    torch.manual_seed(3)
    config: Any
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_layer=2, n_embd=32, n_head=2, n_positions=64,
            initializer_range=0.3,
        )  # fmt: skip
    else:
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96,
            initializer_range=0.3,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose settings penalise repetition and end in two tokens."""
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = demo.train_tokenizer(demo.generate(50))
    template = install_template(tokenizer, "chatml")
    model = small_model(request.param, len(tokenizer))
    model.generation_config = GenerationConfig(
        repetition_penalty=1.3, eos_token_id=template.stop_ids, do_sample=True, top_k=20
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_as_saved(str(folder))


def by_transformers(folder: Path, messages: list[dict[str, str]], **how: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = inputs["input_ids"].shape[1]
    limit = min(how.pop("max_new_tokens", 20), positions_of(model) - length)
    output = model.generate(**inputs, max_new_tokens=limit, **how)
    return str(tokenizer.decode(output[0, length:], skip_special_tokens=True)).strip()


def rows_of(loaded: tuple[Any, Any], questions: list[str]) -> list[list[int]]:
    model, template = loaded
    return [
        encoded(template, conversations({"prompt": words})[0], words, positions_of(model))
        for words in questions
    ]


def test_a_batch_answers_as_transformers_does_one_by_one(
    folder: Path, loaded: tuple[Any, Any]
) -> None:
    """With the model's own settings, and up to its last position for the long ones."""
    found = list(generate_all(*loaded, rows_of(loaded, QUESTIONS), How(max_new_tokens=50), 3))
    for question, answer in zip(QUESTIONS, found, strict=True):
        messages = [{"role": "user", "content": question}]
        told = by_transformers(folder, messages, do_sample=False, max_new_tokens=50)
        assert answer.text == told
    assert len({answer.text for answer in found}) == len(found)


def test_sampling_is_transformers_sampling(folder: Path, loaded: tuple[Any, Any]) -> None:
    how = How(max_new_tokens=20, temperature=0.8, top_p=0.9)
    for seed in (1, 2):
        torch.manual_seed(seed)
        (answer,) = generate_all(*loaded, rows_of(loaded, ["pear"]), how, 1)
        torch.manual_seed(seed)
        messages = [{"role": "user", "content": "pear"}]
        told = by_transformers(folder, messages, do_sample=True, temperature=0.8, top_p=0.9)
        assert answer.text == told


def test_pieces_make_the_whole_and_a_stop_text_ends_it(loaded: tuple[Any, Any]) -> None:
    (row,) = rows_of(loaded, ["apple pear moon"])
    (whole,) = generate_all(*loaded, [row], How(max_new_tokens=24), 1)
    for begin, end in ((4, 5), (3, 6), (6, 11)):
        stop = whole.text[begin:end]
        how = How(max_new_tokens=24, stop=(stop, "never there"))
        pieces: list[str] = []
        made = generate_ids(*loaded, [row], how, write=pieces.append)
        answer = as_answer(*loaded, made.rows[0], how)
        assert answer == (whole.text[: whole.text.index(stop)].strip(), "stop")
        assert "".join(pieces) == answer.text
        assert len(made.rows[0]) < 24
        assert next(generate_all(*loaded, [row, row[:3]], how, 2)) == answer


def test_pieces_of_characters_that_several_tokens_spell(tokenizer: Any) -> None:
    """Bytes as tokens: no half of a character is shown, nor white space that may be the last."""
    ids = tokenizer("é  \n b日 ab ")["input_ids"]
    pieces: list[str] = []
    shown = Pieces(tokenizer, [0], ["abc"], pieces.append)
    shown.put(torch.tensor([[1, 2]]))
    for token in ids:
        shown.put(torch.tensor([token]))
    assert "".join(pieces) == "é  \n b日"  # "ab" could go on as what ends it
    shown.put(torch.tensor([0]))
    shown.end()
    assert "".join(pieces) == words_of(tokenizer, [*ids, 0], [0], ["abc"]) == "é  \n b日 ab"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_prompt_without_room_for_an_answer_is_told(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match=r"xyz has [\d,]+ tokens, and the model takes (64|96)"):
        encoded(
            loaded[1], conversations({"prompt": "xyz " * 99})[0], "xyz", positions_of(loaded[0])
        )


RECORDS = [
    {"instruction": "Sort.", "input": "b a"},
    {"instruction": "Sort.", "input": "b a", "output": "a b", "system": "Be brief."},
    {"prompt": "hello", "label": False},
    {"question": "Which?", "choices": ["x", "y"], "answer": 1},
    {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
    {"prompt": [{"role": "user", "content": "in turns"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                       {"from": "human", "value": "c"}]},
]  # fmt: skip
ASKED = [
    ["S", "Sort.\nb a"], ["Be brief.", "Sort.\nb a"], ["S", "hello"], ["S", "Which?\nA. x\nB. y"],
    ["S", "one"], ["S", "in turns"], ["S", "a", "b", "c"],
]  # fmt: skip


def test_prompts_are_records_with_or_without_answers(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    found = read_prompts(file, "S")
    assert [[message.content for message in one.conversation] for one in found] == ASKED
    assert [one.record for one in found] == RECORDS
    plain = tmp_path / "p.txt"
    plain.write_text("one\n\ntwo\n")
    assert [one.record for one in read_prompts(plain, None)] == [
        {"prompt": "one"},
        {"prompt": "two"},
    ]


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_the_command(folder: Path, tmp_path: Path) -> None:
    """One instruction, standard input, and a file of them, whose answers are the same."""
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": words}) + "\n" for words in QUESTIONS))
    short = ("--max-new-tokens", "12")
    done = run_raysft(
        "generate", folder, "--prompts", file, "--to", "out.jsonl", *short, cwd=tmp_path
    )
    assert (done.code, done.stdout) == (0, ""), done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == QUESTIONS
    assert not list(tmp_path.glob("*.partial"))
    alone = run_raysft("generate", folder, QUESTIONS[1], "--stream", *short, cwd=tmp_path)
    assert alone.stdout == lines[1]["generated"] + "\n"
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "pear"}]
    told = by_transformers(folder, messages, do_sample=False, max_new_tokens=12)
    system = run_raysft("generate", folder, "pear", "--system", "Be.", *short, cwd=tmp_path)
    assert (system.stdout, system.stderr) == (told + "\n", "")
    torch.manual_seed(7)
    sampled = ("--temperature", "0.8", "--seed", "7", *short)
    told = by_transformers(folder, messages, do_sample=True, temperature=0.8, max_new_tokens=12)
    again = run_raysft("generate", folder, "pear", "--system", "Be.", *sampled, cwd=tmp_path)
    assert again.stdout == told + "\n"


def run_folder(path: Path, status: str | None = None) -> Path:
    path.mkdir()
    (path / "run.json").write_text("{}")
    if status:
        (path / "summary.json").write_text(json.dumps({"status": status}))
    return path


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    run_folder(tmp_path / "r", "interrupted")
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck/manifest_0.json").write_text("{}")
    (tmp_path / "there").write_text("x")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"no": 1}\n')
    for words, told in (
        (["r", "x"], "r (interrupted) has no model, and no checkpoint to make one of"),
        (["ck", "x"], "raysft export ck --to FOLDER"),
        (["m", " "], "the prompt is empty"),
        (["m", "x", "--prompts", "there"], "which of them?"),
        (["m", "x", "--to", "there"], "--to takes the answers to --prompts"),
        (["m", "--prompts", "bad.jsonl"], "bad.jsonl line 2: no known format"),
        (["m", "--prompts", "gone.txt"], "there is no file gone.txt"),
        (["m", "--prompts", "there", "--to", "there"], "there exists"),
        (["m", "x", "--top-p", "0.5"], "give it a share above 0, and a --temperature"),
    ):
        done = run_raysft("generate", *words, cwd=tmp_path)
        assert (done.code, done.stdout) == (2, ""), words
        assert told in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
