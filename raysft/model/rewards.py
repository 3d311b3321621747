"""What an answer is worth: by a rule, by a function of the user's, or by a reward model."""

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raysft.data.turns import Conversation, Message
from raysft.errors import UserError
from raysft.runs import rundir

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
SCORED_AT_ONCE = 64  # answers, by a reward model
QUOTED = 80  # characters of an answer that a message quotes


class Answered(NamedTuple):
    prompt: Conversation  # the turns before the answer
    answer: str
    reference: str  # the record's own answer


Rule = Callable[[Conversation, str, str], float]  # of the three parts of Answered
Reward = Callable[[Sequence[Answered]], list[float]]


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


RULES: dict[str, Rule] = {"exact": exact, "number": number, "demo": demo}


def require_reward(name: str, key: str) -> None:
    """Whether there is such a reward, as far as that is seen without loading it. Raises UserError
    that begins with the config's key."""
    if name in RULES:
        return
    if own := file_and_function(name):
        file, function = own
        if not file.is_file():
            raise UserError(f"{key}: there is no file {file}")
        if not re.search(rf"\b{re.escape(function)}\b", file.read_text(errors="replace")):
            raise UserError(f"{key}: {file} has no function {function!r}")
        return
    if not (folder_of(name) / "config.json").is_file():
        raise UserError(
            f"{key}: {name!r} is none of {', '.join(RULES)}, no FILE.py:FUNCTION, and no folder of "
            "a reward model"
        )


def load_reward(name: str, key: str, device: Any = "cpu") -> Reward:
    """A rule, `FILE.py:FUNCTION`, or the folder of a reward model or of the run that made it.

    The function gets the prompt's last turn, the answer and the record's own answer, as texts.
    key: of the config, for messages. Raises UserError; the reward itself too, where it fails on an
    answer or gives no number.
    """
    require_reward(name, key)
    if name in RULES:
        return each(RULES[name], f"{key}: {name}")
    if own := file_and_function(name):
        return each(own_function(*own, key), f"{key}: {name}")
    return reward_model(folder_of(name), key, device)


def file_and_function(name: str) -> tuple[Path, str] | None:
    file, colon, function = name.rpartition(":")
    return (Path(file), function) if colon and file.endswith(".py") else None


def folder_of(name: str) -> Path:
    """Of a reward model: itself, or that of its run."""
    return Path(name) / rundir.MODEL if (Path(name) / rundir.RUN).exists() else Path(name)


def placed(name: str) -> str:
    """The same reward for a process that works in another folder."""
    if name in RULES:
        return name
    if own := file_and_function(name):
        return f"{own[0].absolute()}:{own[1]}"
    return str(Path(name).absolute())


def each(rule: Rule, said: str) -> Reward:
    """One by one. said: how a message about an answer begins."""

    def worth(answered: Sequence[Answered]) -> list[float]:
        return [one_of(rule, said, answer) for answer in answered]

    return worth


def one_of(rule: Rule, said: str, answered: Answered) -> float:
    """Raises UserError that names the answer."""
    try:
        value = float(rule(*answered))
        problem = "" if math.isfinite(value) else f"gives {value}"
    except Exception as error:  # the user's code may raise anything
        problem = f"fails with {type(error).__name__}: {error}"
    if problem:
        asked, answer = (shortened(t) for t in (answered.prompt[-1].content, answered.answer))
        raise UserError(f"{said} {problem} for the answer {answer!r} to {asked!r}")
    return value


def shortened(text: str) -> str:
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def own_function(file: Path, name: str, key: str) -> Rule:
    """Raises UserError where the file does not run, or has no such function."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{key}: {file} fails with {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}: {file} has no function {name!r}")
    return lambda prompt, answer, reference: function(prompt[-1].content, answer, reference)


def reward_model(folder: Path, key: str, device: Any) -> Reward:
    """Its score of the conversation as it was trained: by its own template, end token included."""
    from raysft.data.template import install_template
    from raysft.model.load import auto_class, load_from_hub_or_folder

    from transformers import AutoTokenizer  # isort: skip

    tokenizer = load_from_hub_or_folder(AutoTokenizer, str(folder), key)
    template = install_template(tokenizer, "auto")
    model = load_from_hub_or_folder(auto_class(True), str(folder), key).eval().to(device)
    if model.config.num_labels != 1:
        raise UserError(f"{key}: {folder} is no reward model: it has more than one label")

    def worth(answered: Sequence[Answered]) -> list[float]:
        conversations = [[*one.prompt, Message("assistant", one.answer)] for one in answered]
        found = scores(model, template, conversations)
        for value, one in zip(found, answered, strict=True):
            one_of(lambda *_, value=value: value, f"{key}: {folder}", one)
        return found

    return worth


def scores(model: Any, template: Any, conversations: Sequence[Conversation]) -> list[float]:
    """Of conversations that end in an answer: each as if it were alone, at its last token.

    Padded on the right, where nothing looks; the last token is found by lengths, never by an id.
    """
    import torch

    from raysft.data.template import to_segments
    from raysft.data.tokenize import encode
    from raysft.model.scalar import rewards_at

    segments = [to_segments(turns, template, last_turn_only=True) for turns in conversations]
    rows = [torch.from_numpy(e.input_ids.astype("int64")) for e in encode(template, segments)]
    found = [0.0] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for begin in range(0, len(rows), SCORED_AT_ONCE):
        some = by_length[begin : begin + SCORED_AT_ONCE]
        lengths = torch.tensor([len(rows[index]) for index in some])
        ids = torch.nn.utils.rnn.pad_sequence([rows[index] for index in some], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        ends = torch.arange(len(some)) * ids.shape[1] + lengths - 1
        ids, ends, mask = (tensor.to(model.device) for tensor in (ids, ends, mask))
        with torch.no_grad():
            values = rewards_at(model, ids, ends, attention_mask=mask)
        for index, value in zip(some, values.tolist(), strict=True):
            found[index] = value
    return found
