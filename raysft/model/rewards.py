"""What an answer is worth: by a rule, by a function of the user's, or by a reward model."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysft.data.turns import Conversation, Message
from raysft.errors import UserError
from raysft.runs import rundir

# The turns before an answer, the answer, and the record's own answer: what it is worth.
Reward = Callable[[Conversation, str, str], float]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(_prompt: Conversation, answer: str, reference: str) -> float:
    """1 for the record's own answer, but for white space around it."""
    return float(answer.strip() == reference.strip())


def number(_prompt: Conversation, answer: str, reference: str) -> float:
    """1 where the last number is that of the record's own answer, as GSM8K is judged."""
    found, wanted = (NUMBER.findall(text.replace(",", "")) for text in (answer, reference))
    return float(bool(found and wanted) and float(found[-1]) == float(wanted[-1]))


def demo(prompt: Conversation, answer: str, _reference: str) -> float:
    """1 for a right answer to a task of the built-in records, which is solved again."""
    from raysft.data.demo import solve

    instruction, _, text = prompt[-1].content.partition("\n")
    return float(answer.strip() == solve(instruction, text))


RULES: dict[str, Reward] = {"exact": exact, "number": number, "demo": demo}


def load_reward(name: str) -> Reward:
    """A rule, `FILE.py:FUNCTION`, or the folder of a reward model or of the run that made it.

    The function gets the prompt's last turn, the answer and the record's own answer, as texts.
    Raises UserError.
    """
    if name in RULES:
        return RULES[name]
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return own_function(Path(file), function)
    folder = Path(name) / rundir.MODEL if (Path(name) / rundir.RUN).exists() else Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"pairs.reward: {name!r} is none of {', '.join(RULES)}, no FILE.py:FUNCTION, and no "
            "folder of a reward model"
        )
    return reward_model(folder)


def own_function(file: Path, name: str) -> Reward:
    """Raises UserError where there is no such file or function."""
    if not file.is_file():
        raise UserError(f"pairs.reward: there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"pairs.reward: {file} has no function {name!r}")
    return lambda prompt, answer, reference: float(function(prompt[-1].content, answer, reference))


def reward_model(folder: Path) -> Reward:
    """Its score of the conversation as it was trained: by its own template, end token included."""
    from raysft.data.template import install_template
    from raysft.model.load import auto_class, load_from_hub_or_folder

    from transformers import AutoTokenizer  # isort: skip

    tokenizer = load_from_hub_or_folder(AutoTokenizer, str(folder), "pairs.reward")
    template = install_template(tokenizer, "auto")
    model = load_from_hub_or_folder(auto_class(True), str(folder), "pairs.reward").eval()
    if model.config.num_labels != 1:
        raise UserError(f"pairs.reward: {folder} is no reward model: it has more than one label")

    def score(prompt: Conversation, answer: str, _reference: str) -> float:
        (value,) = scores(model, template, [[*prompt, Message("assistant", answer)]])
        return value

    return score


def scores(model: Any, template: Any, conversations: Sequence[Conversation]) -> list[float]:
    """Of conversations that end in an answer, one by one."""
    import torch

    from raysft.data.template import to_segments
    from raysft.data.tokenize import encode

    segments = [to_segments(turns, template, last_turn_only=True) for turns in conversations]
    found = []
    for example in encode(template, segments):
        ids = torch.from_numpy(example.input_ids.astype("int64"))[None]
        with torch.no_grad():
            found.append(float(model(input_ids=ids.to(model.device)).logits[0, 0]))
    return found
