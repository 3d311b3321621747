"""A conversation, against transformers' own rendering and generation of the whole of it."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from raysft.data import demo
from raysft.data.template import install_template
from raysft.errors import UserError
from raysft.model.conversation import Talk
from raysft.model.generate import How, load_as_saved
from tests.conftest import run_raysft

LAST_ONLY = """
{%- set last = messages[-2:] if messages[-1].role == "assistant" else messages[-1:] -%}
{%- for message in last -%}
{{ message.content }}{{ eos_token if message.role == "assistant" else "\n" }}
{%- endfor -%}
"""
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "gpt2": lambda words: GPT2Config(
        vocab_size=words, n_layer=2, n_embd=32, n_head=2, n_positions=128, initializer_range=0.3
    ),
    "sliding": lambda words: MistralConfig(
        vocab_size=words, sliding_window=16, max_position_embeddings=512, **SMALL
    ),
    "long": lambda words: LlamaConfig(vocab_size=words, max_position_embeddings=100_000, **SMALL),
}


def make(path: Path, kind: str) -> Path:
    tokenizer = demo.train_tokenizer(demo.generate(50))
    install_template(tokenizer, "chatml")
    torch.manual_seed(11)  # by which answers come back from the tokenizer as they were
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](len(tokenizer)))
    if kind == "long":  # nothing ends its answers
        model.lm_head.weight.data[-2:] = 0
        model.lm_head.weight.data[0] = 0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def never() -> bool:
    return False


def nothing(_: str) -> None: ...


@pytest.mark.parametrize("kind", ["gpt2", "sliding"])
def test_a_conversation_is_what_transformers_makes_of_the_whole(tmp_path: Path, kind: str) -> None:
    """Every turn, with the cache of those before, which a window of tokens cannot be cut to."""
    how = How(max_new_tokens=10)
    talk = Talk(*load_as_saved(str(make(tmp_path, kind))), how, "Be brief.")
    model, tokenizer = talk.model, talk.template.tokenizer
    messages = [{"role": "system", "content": "Be brief."}]
    for number, question in enumerate(("pear moon", "Count apple.", "<|im_end|> fish")):
        reply = talk.ask(question, nothing, never)
        messages.append({"role": "user", "content": question})
        if number < 2:  # the third spells a special token, which stays text here
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            length = inputs["input_ids"].shape[1]
            output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
            told = tokenizer.decode(output[0, length:], skip_special_tokens=True)
            assert reply.text == told.strip()
            assert talk.cached[:length] == inputs["input_ids"][0].tolist()
            assert talk.turns[-1].content == told
        assert (reply.reused > 10) == (number > 0)
        messages.append({"role": "assistant", "content": talk.turns[-1].content})
    talk.reset()
    again = talk.ask("pear moon", nothing, never)
    assert talk.turns[-1].content == messages[2]["content"]
    assert bool(again.reused) == (kind == "gpt2")


def test_the_oldest_turns_leave_a_full_context(tmp_path: Path) -> None:
    talk = Talk(*load_as_saved(str(make(tmp_path, "gpt2"))), How(max_new_tokens=12), None)
    left_out = [talk.ask("apple pear " * 8, nothing, never).left_out for _ in range(5)]
    assert left_out[0] == left_out[1] == 0
    assert 1 in left_out
    assert len(talk.turns) == 2 * (5 - sum(left_out))
    with pytest.raises(UserError, match=r"the question has \d+ tokens, and the model takes 128"):
        talk.ask("apple " * 200, nothing, never)
    assert talk.ask("fish", nothing, never).tokens > 0


def test_a_script_on_standard_input(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "gpt2")

    def chat(lines: str, *words: str) -> tuple[list[str], str]:
        done = subprocess.run(
            [Path(sys.executable).parent / "raysft", "chat", folder, "--max-new-tokens=6", *words],
            input=lines, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    answers, told = chat("pear\nmoon\n\n/reset\npear\n/what\nmoon\n/quit\nfish\n")
    assert len(answers) == 4
    assert answers[:2] == answers[2:]
    assert "forgotten" in told
    assert "no such command" in told
    alone = run_raysft("generate", folder, "pear", "--max-new-tokens=6", cwd=tmp_path)
    assert alone.stdout == answers[0] + "\n"
    (folder / "chat_template.jinja").write_text(LAST_ONLY)
    answers, told = chat("pear\nmoon\nmoon\n")
    assert answers[1] == answers[2]
    assert told.count("writes one question:") == 1


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends(tmp_path: Path) -> None:
    """In a terminal of its own."""
    folder = make(tmp_path / "m", "long")
    child, terminal = pty.fork()
    if child == 0:
        command = str(Path(sys.executable).parent / "raysft")
        os.execv(command, [command, "chat", str(folder), "--max-new-tokens=90000"])
    seen, until = "", time.monotonic() + 240

    def wait_for(words: str, again: Sequence[bytes] = (b"",)) -> None:
        """again: typed at first and every few seconds, as a person does where nothing happens: a
        Ctrl-C between the prompt and the first look at the keyboard waits for the next key. Not in
        one piece: Ctrl-C takes back what was typed and not read, and who was told of keys that are
        gone waits for others."""
        nonlocal seen
        while words not in seen:
            for keys in again:
                assert time.monotonic() < until, seen[-500:]
                os.write(terminal, keys)
                while words not in seen and select.select([terminal], [], [], 1)[0]:
                    seen += os.read(terminal, 4096).decode(errors="replace")
        seen = seen.partition(words)[2]

    try:
        wait_for("> ")
        os.write(terminal, b"pear\n")
        wait_for("pear")
        for letter in "aei":  # some of an answer
            wait_for(letter)
        os.write(terminal, b"\x03")
        wait_for("stopped")
        wait_for("> ")
        wait_for("> ", again=(b"half", b"\x03"))
        os.write(terminal, b"\x15\x04")  # a line that is left is deleted first
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
