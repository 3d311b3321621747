"""Answers drawn from a model: by their keys alone, and of the distribution that is scored."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.data.template import install_template
from raysft.model.sample import (
    BLOCK,
    Sampling,
    Written,
    draw,
    inverse,
    keys_of,
    uniforms,
    words,
    write,
)

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6]]
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 50}
LLAMA = {**SHAPE, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 50, "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "llama": LLAMA,
    "opt": {**SHAPE, "ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "bloom": {"vocab_size": 50, "n_layer": 2, "hidden_size": 32, "n_head": 2},  # no positions
    "gemma3_text": {**LLAMA, "sliding_window": 4},  # shorter than an answer
}
ENDS = [3, 4]


def model_of(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    )
    with torch.no_grad():  # far from uniform
        model.get_output_embeddings().weight.mul_(8)
    return model.eval()


def drawn(model: Any, prompts: list[list[int]], how: Sampling, first: int = 0) -> Any:
    keys = keys_of(0, first + np.arange(len(prompts))[:, None], np.arange(how.samples))
    return write(model, prompts, keys, how, ENDS)


@torch.no_grad()
def plain(model: Any, prompt: list[int], one: Written, temperature: float) -> Any:
    """Log P and entropies by the model's forward of this one answer, without cache or padding."""
    ids = torch.tensor([[*prompt, *one.ids.tolist()]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    probabilities = (logits / temperature).softmax(-1)
    logs = probabilities.log()
    return logs[range(len(one.ids)), one.ids], -(probabilities * logs).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_is_what_is_scored(family: str) -> None:
    """Traps 18, 19 and positions under left padding: against each answer alone."""
    model, how = model_of(family), Sampling(3, 1.3, 8)
    ended = set()
    for prompt, answers in zip(PROMPTS, drawn(model, PROMPTS, how), strict=True):
        for one in answers:
            logs, entropies = plain(model, prompt, one, 1.3)
            np.testing.assert_allclose(one.logs, logs, atol=2e-5)
            np.testing.assert_allclose(one.entropies, entropies, atol=2e-5)
            assert (one.entropies >= 0).all()
            assert (one.entropies <= math.log(50) + 1e-6).all()
            assert one.ended == (one.ids[-1] in ENDS)
            assert not set(one.ids[:-1].tolist()) & set(ENDS)
            assert one.ended or len(one.ids) == 8
            ended.add(one.ended)
    assert family != "gpt2" or ended == {True, False}


def as_lists(found: list[list[Written]]) -> list[list[list[int]]]:
    return [[one.ids.tolist() for one in answers] for answers in found]


def test_answers_depend_on_their_keys_alone() -> None:
    """Not on what is drawn with them: so they are the same over any number of workers."""
    model, how = model_of("gpt2"), Sampling(4, 1.0, 12)
    together = as_lists(drawn(model, PROMPTS, how))
    apart = [as_lists(drawn(model, [p], how, first=i))[0] for i, p in enumerate(PROMPTS)]
    assert together == apart
    assert len({tuple(answer) for answers in together for answer in answers}) > 12  # none twice
    assert as_lists(drawn(model, PROMPTS, how, first=1)) != together


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_softmax(temperature: float) -> None:
    """Of first tokens, and of second tokens after the likeliest first one."""
    model = model_of("gpt2", vocab_size=6)
    (answers,) = write(
        model, [[5, 2]], keys_of(1, np.arange(1)[:, None], np.arange(20_000)),
        Sampling(20_000, temperature, 2), [0],
    )  # fmt: skip
    for lead in ([], [int(np.bincount([one.ids[0] for one in answers])[1:].argmax()) + 1]):
        following = [one.ids[len(lead)] for one in answers if list(one.ids[: len(lead)]) == lead]
        found = np.bincount(following, minlength=6) / len(following)
        with torch.no_grad():
            logits = model(torch.tensor([[5, 2, *lead]])).logits[0, -1]
        wanted = (logits / temperature).softmax(-1).numpy()
        assert np.abs(found - wanted).max() < 4 * 0.5 / len(following) ** 0.5


@pytest.mark.parametrize("vocabulary", [5, BLOCK, 3 * BLOCK + 7])
def test_the_inverse_of_a_distribution(vocabulary: int) -> None:
    """Against numpy's in fp64; what cannot be drawn is not drawn, at either end of the row."""
    source = torch.Generator().manual_seed(0)
    weights = torch.rand(200, vocabulary, generator=source) ** 8
    weights[:, 0] = weights[:, -1] = 0.0
    weights[:, BLOCK - 1 : BLOCK + 1] = 0.0 if vocabulary > BLOCK else weights[:, :1]
    weights[:100] = weights[:100].clamp(max=0.0)  # of these a single token alone can be drawn
    weights[torch.arange(100), torch.randint(1, vocabulary - 1, (100,), generator=source)] = 1e-4
    numbers = torch.rand(200, generator=source, dtype=torch.float64)
    numbers[:8], numbers[100:104] = 1 - 2.0**-53, 0.0
    found = inverse(weights, numbers)
    assert (weights.gather(1, found[:, None]) > 0).all()
    rows = weights.double().numpy()
    for row, number, token in zip(rows, numbers.tolist(), found.tolist(), strict=True):
        total = row.cumsum()
        below = total[token - 1] if token else 0.0
        slack = 1e-6 * total[-1]
        assert below - slack <= number * total[-1] <= total[token] + slack


def test_numbers_are_uniform_and_those_of_neighbours_are_unrelated() -> None:
    keys = keys_of(0, np.arange(300)[:, None], np.arange(300)).ravel()
    assert len(set(keys.tolist())) == len(keys)
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    for one in (first, second):
        assert 0 <= one.min() < 1e-3
        assert 1 - 1e-3 < one.max() < 1
        assert np.abs(np.sort(one) - np.linspace(0, 1, len(one))).max() < 0.006  # Kolmogorov
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.015
    assert keys_of(1, 2)[0] != keys_of(2, 1)[0]


def test_an_answer_in_words_is_without_its_end_token(tokenizer: Any) -> None:
    """Trap 17: the template's stop ids tell whether an answer has ended."""
    own = copy.deepcopy(tokenizer)
    template = install_template(own, "plain")
    text = own("so it is")["input_ids"]
    nothing = np.zeros(0, np.float32)
    ended = Written(np.array([*text, *template.stop_ids[:1]]), True, nothing, nothing)
    cut = Written(np.array(text), False, nothing, nothing)
    assert words(template, ended) == ("so it is", True)
    assert words(template, cut) == ("so it is", False)
    model = model_of("gpt2", vocab_size=len(own))
    found = draw(model, template, PROMPTS, Sampling(2, 1.0, 200), seed=0, first=0)
    assert [len(answers) for answers in found] == [2] * 4
    assert {one.ended for answers in found for one in answers} == {False}  # positions were too few
