"""An iteration of policy gradients on one process: what is drawn, scored, packed and minimised."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.config.load import load_config
from raysft.config.preference import Ppo
from raysft.config.schema import Config
from raysft.data.asked import CUT, NO_ROOM, as_prompts
from raysft.data.dataset import prepare
from raysft.data.loader import RankData, StepData
from raysft.data.template import Template, install_template
from raysft.errors import UserError
from raysft.model.attention import PACKED, register
from raysft.model.critic import add_value_head
from raysft.runs.events import Event, Warning
from raysft.train.objectives.iterations import Iterations, with_answers
from raysft.train.objectives.ppo import FACTS, loss

ASKED = ["one", "two two", "3", "what is it", "say so", "a", "bb", "ccc"]
LETTERS = """
def letters(prompt, answer, reference):
    return sum(c.isalpha() for c in answer) / 10
"""


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("dist") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """What is asked of DeepSpeed's, around a model."""

    def __init__(self, model: Any) -> None:
        self.module = model
        self.device = torch.device("cpu")

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()

    def zero_optimization_stage(self) -> int:
        return 0

    def empty_partition_cache(self) -> None:
        pass


class Case:
    """A config, a template and a small model, far from uniform."""

    def __init__(self, folder: Path, tokenizer: Any, *sets: str) -> None:
        records = [{"prompt": asked, "completion": asked[::-1]} for asked in ASKED]
        (folder / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        (folder / "mine.py").write_text(LETTERS)
        self.folder = folder
        self.config: Config = load_config("gpt2-tiny-cpu", [
            f"data.path={folder / 'd.jsonl'}", "model.tokenizer=unused", "data.eval_fraction=0",
            "batch.seq_len=32", "batch.global_batch_size=16", "batch.micro_batch_size=3",
            "batch.tokens_per_micro_batch=64", f"ppo.reward={folder / 'mine.py'}:letters",
            "ppo.max_new_tokens=12", "scaling.workers=1", "ppo.group=4", "ppo.prompts_at_once=3",
            *sets,
        ])  # fmt: skip
        self.template: Template = install_template(copy.deepcopy(tokenizer), "plain")
        register()
        torch.manual_seed(0)
        shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **shape, resid_pdrop=0.0,
                                 embd_pdrop=0.0, attn_pdrop=0.0),
            attn_implementation=PACKED if self.config.batch.packing else "sdpa",
        )  # fmt: skip
        with torch.no_grad():
            model.lm_head.weight.mul_(20)  # wte, which is tied to it
            model.transformer.wte.weight[0] *= 1.5  # so that some answers end
        if self.config.ppo.advantage == "critic":
            add_value_head(model, {"zero_optimization": {"stage": 0}})
            torch.nn.init.normal_(model.value_head.weight)
        self.engine = Engine(model)
        self.said: list[Event] = []

    def iterations(self, *, moves: bool = False) -> Iterations:
        """moves: the policy is no longer the reference."""
        train, _ = as_prompts(self.config, self.template, self.prepared())
        reads = RankData(self.config, train, train, rank=0, world_size=1)
        made = with_answers(self.config.ppo, self.engine, reads, self.folder, self.said.append)
        if moves:
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in self.engine.module.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return made

    def prepared(self) -> Any:
        return prepare(self.config, self.template).train

    def steps(self, count: int = 1, *, moves: bool = True) -> list[StepData]:
        updates = self.config.ppo.updates
        made = self.iterations(moves=moves)
        return list(made.steps(0, count * updates, torch.device("cpu")))


def gradient(case: Case, step: StepData) -> tuple[float, list[torch.Tensor]]:
    """Of the whole step, as train_step divides it."""
    model = case.engine.module
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [loss(case.config.ppo, case.engine, batch, 1.0) for batch in step.batches]
    total = torch.stack([one.loss for one in sums]).sum() / step.records
    grads = torch.autograd.grad(total, parameters)
    return total.item(), list(grads)


LAYOUTS = {
    "packs": (),
    "one pack": ("batch.tokens_per_micro_batch=2048",),
    "rows": ("batch.packing=false", "batch.global_batch_size=15", "ppo.group=3"),
}


@pytest.mark.parametrize("advantage", ["group", "critic"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", ["packs", "rows"])
def test_the_first_ratio_is_one_and_the_loss_is_that_of_plain_pytorch(
    tmp_path: Path, tokenizer: Any, layout: str, temperature: float, advantage: str
) -> None:
    """Traps 20, 21 and 24: exactly 1 by the same packs; one temperature; divided by the answers of
    the step, whatever the packs."""
    case = Case(tmp_path, tokenizer, *LAYOUTS[layout], f"ppo.temperature={temperature}",
                f"ppo.advantage={advantage}", "ppo.beta=0.3", "ppo.lam=0.9")  # fmt: skip
    iterations = case.iterations(moves=True)
    (step,) = iterations.steps(0, 1, torch.device("cpu"))
    for batch in step.batches:
        assert loss(case.config.ppo, case.engine, batch, 1.0).measures.tolist() == [0.0, 0.0]
    found, grads = gradient(case, step)
    expected = plain(case, iterations.reference, step)
    assert found == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    parameters = [p for p in case.engine.module.parameters() if p.requires_grad]
    for one, other in zip(grads, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)


def rows_of(step: StepData) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each sequence of a step, read off its batches."""
    found = []
    for batch in step.batches:
        ids, trained = batch.input_ids.flatten(), set(batch.supervised.tolist())
        if "position_ids" in batch.inputs:
            borders = batch.inputs["cu_seq_lens_q"].tolist()
        else:
            borders = [n * batch.input_ids.shape[1] for n in range(len(batch.input_ids) + 1)]
        for begin, end in pairwise(borders):
            answer = [place for place in range(begin, end) if place in trained]
            if answer:
                prompt = ids[begin : answer[0]].tolist()
                found.append((prompt, ids[answer].tolist()))
    return found


def plain(case: Case, reference: Any, step: StepData) -> torch.Tensor:
    """The loss by transformers' forward of every answer alone, and by sums that are written out."""
    ppo, model = case.config.ppo, case.engine.module
    rows = rows_of(step)
    ratios, kls, hiddens = [], [], []
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]])
        place = slice(len(prompt) - 1, -1)
        both = []
        for one in (model, reference):
            output = one(ids, output_hidden_states=True)
            of_all = (output.logits[0, place] / ppo.temperature).log_softmax(-1)
            both.append(of_all[range(len(answer)), answer])
            if one is model:
                hiddens.append(output.hidden_states[-1][0, place])
        ratios.append((both[0] - both[0].detach()).exp())  # 1, with the gradient of log P
        kls.append((both[0] - both[1]).detach())
    worth = []
    for _, answer in rows:
        ended = answer[-1] in case.template.stop_ids
        text = case.template.tokenizer.decode(answer[: len(answer) - ended],
                                              skip_special_tokens=True)  # fmt: skip
        worth.append(sum(c.isalpha() for c in text) / 10 - ppo.missing_eos * (not ended))
    total = torch.zeros(())
    if ppo.advantage == "group":
        net = [w - ppo.beta * float(kl.sum()) for w, kl in zip(worth, kls, strict=True)]
        for number, ((prompt, _), ratio) in enumerate(zip(rows, ratios, strict=True)):
            others = [net[i] for i, (p, _) in enumerate(rows) if p == prompt and i != number]
            assert len(others) == ppo.group - 1
            total = total - (net[number] - sum(others) / len(others)) * ratio.sum()
        return total / len(rows)
    advantages, returns, values = [], [], []
    for w, kl, hidden in zip(worth, kls, hiddens, strict=True):
        value = model.value_head(hidden)[:, 0]
        rewards = (-ppo.beta * kl).tolist()
        rewards[-1] += w
        v = [*value.tolist(), 0.0]
        deltas = [rewards[t] + v[t + 1] - v[t] for t in range(len(rewards))]
        of = [sum(ppo.lam**k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
        advantages += of
        returns += [a + b for a, b in zip(of, v, strict=False)]
        values.append(value)
    a = torch.tensor(advantages)
    white = (a - a.mean()) / a.std(correction=0)
    error = (torch.cat(values) - torch.tensor(returns)) ** 2
    policy = -(white * torch.cat(ratios)).sum()
    return (policy + ppo.critic_weight * error.sum() / 2) / len(rows)


def test_layouts_give_one_gradient(tmp_path: Path, tokenizer: Any) -> None:
    """Trap 24, over packs of a few answers and of all; trap 6."""
    found = []
    for name in ("packs", "one pack"):
        (tmp_path / name).mkdir()
        case = Case(tmp_path / name, tokenizer, *LAYOUTS[name], "ppo.beta=0.3")
        (step,) = case.steps()
        found.append((len(step.batches), *gradient(case, step)))
    assert found[0][0] > found[1][0] == 1
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_answers_are_their_tokens_and_their_end(tmp_path: Path, tokenizer: Any) -> None:
    """Trap 16: nothing comes after an end token, and it is trained itself. Trap 18: entropies are
    within [0, ln V]. Trap 19: the copy draws from what the engine scores."""
    case = Case(tmp_path, tokenizer)
    (step,) = case.steps()
    ends = set(case.template.stop_ids)
    rows = rows_of(step)
    assert len(rows) == step.records == 16
    assert {bool(set(answer) & ends) for _, answer in rows} == {True, False}
    for _, answer in rows:
        assert not set(answer[:-1]) & ends
        assert answer[-1] in ends or len(answer) == 12
    asked = {tuple(p.ids) for p in case.iterations().records.train.asked.prompts}
    assert {tuple(prompt) for prompt, _ in rows} <= asked
    facts = step.facts
    assert set(facts) <= set(FACTS)
    assert 0 < facts["entropy"] <= math.log(len(tokenizer))
    assert facts["drawing_gap"] < 1e-4
    assert facts["ended"] == np.mean([answer[-1] in ends for _, answer in rows])
    assert facts["answer_tokens"] == np.mean([len(answer) for _, answer in rows])
    assert step.supervised_tokens == sum(len(answer) for _, answer in rows)


def test_kl_is_zero_at_the_reference_and_positive_away_from_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    """Trap 19: of many answers, because single ones may be likelier by the reference."""
    sets = ("batch.global_batch_size=512", "ppo.group=64")
    case = Case(tmp_path, tokenizer, *sets)
    assert case.steps(moves=False)[0].facts["kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert case.steps(moves=True)[0].facts["kl_to_reference"] > 0.05


def test_updates_see_each_answer_once_an_epoch(tmp_path: Path, tokenizer: Any) -> None:
    case = Case(tmp_path, tokenizer, "ppo.minibatches=2", "ppo.epochs=3")
    steps = case.steps(count=2)
    assert len(steps) == 12
    for first in (0, 6):
        rows = [rows_of(step) for step in steps[first : first + 6]]
        whole = sorted(rows[0] + rows[1])
        assert len(whole) == 32
        assert all(sorted(rows[e] + rows[e + 1]) == whole for e in (0, 2, 4))
    assert sorted(rows_of(steps[0])) != sorted(rows_of(steps[6]))
    assert steps[0].facts == steps[5].facts != steps[6].facts


def test_answers_are_those_of_their_iteration_whenever_it_comes(
    tmp_path: Path, tokenizer: Any
) -> None:
    """As a run has them that goes on."""
    case = Case(tmp_path, tokenizer)
    iterations, device = case.iterations(), torch.device("cpu")
    both = [rows_of(step) for step in iterations.steps(0, 2, device)]
    (again,) = iterations.steps(1, 2, device)
    assert rows_of(again) == both[1] != both[0]


def test_a_prompt_that_comes_twice_gets_answers_of_its_own(tmp_path: Path, tokenizer: Any) -> None:
    """ms-swift#3450: duplicate samples."""
    case = Case(tmp_path, tokenizer, "data.max_records=1", "data.drop_duplicates=false")
    (step,) = case.steps()
    assert len({tuple(prompt) for prompt, _ in rows_of(step)}) == 1
    assert len({tuple(answer) for _, answer in rows_of(step)}) > 12


def test_rewards_are_weighed_and_a_missing_end_costs(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "mine.py"
    case = Case(tmp_path, tokenizer, "ppo.missing_eos=3.0", "ppo.reward_weights=[2.0, 0.5]",
                f"ppo.reward=[{str(file) + ':letters'!r}, {str(file) + ':fours'!r}]",
                f"ppo.checker={file}:fours")  # fmt: skip
    file.write_text(LETTERS + "def fours(prompt, answer, reference):\n    return 4\n")
    (step,) = case.steps()
    worth = []
    for _, answer in rows_of(step):
        ended = answer[-1] in case.template.stop_ids
        text = case.template.tokenizer.decode(answer, skip_special_tokens=True)
        worth.append(0.2 * sum(map(str.isalpha, text)) + 2.0 - 3.0 * (not ended))
    assert step.facts["reward"] == pytest.approx(np.mean(worth))
    assert step.facts["checked"] == 4.0


def test_a_reward_that_fails_ends_the_run_with_its_answer(tmp_path: Path, tokenizer: Any) -> None:
    case = Case(tmp_path, tokenizer)
    (tmp_path / "mine.py").write_text(LETTERS.replace("sum", "str"))
    with pytest.raises(UserError, match=r"mine.py:letters fails with TypeError: .* for the answer"):
        case.steps()


def test_a_run_that_strays_too_far_ends_after_its_iteration(tmp_path: Path, tokenizer: Any) -> None:
    case = Case(tmp_path, tokenizer, "ppo.stop_kl=0.001", "ppo.minibatches=2")
    assert [step.is_last for step in case.steps(count=3)] == [False, True]
    told = [event.message for event in case.said if isinstance(event, Warning)]
    assert len(told) == 1
    assert "beyond ppo.stop_kl" in told[0]
    assert not any(step.is_last for step in case.steps(moves=False))


def test_what_is_known_of_groups_and_of_the_critic(tmp_path: Path, tokenizer: Any) -> None:
    case = Case(tmp_path, tokenizer, "ppo.advantage=critic", "ppo.missing_eos=0.0")
    (tmp_path / "mine.py").write_text("def letters(prompt, answer, reference):\n    return 1\n")
    facts = case.steps()[0].facts
    assert facts["groups_alike"] == 1.0
    assert facts["explained_variance"] < 1
    assert "checked" not in facts


def test_prompts_are_those_of_the_records_that_are_trained_on(
    tmp_path: Path, tokenizer: Any
) -> None:
    case = Case(tmp_path, tokenizer)
    twice = [("q", "first"), ("q", "second"), ("x" * 25, "a"), ("y" * 40, "b")]
    lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in twice)
    (tmp_path / "d.jsonl").write_text("".join(lines))
    records = case.prepared()
    train, dropped = as_prompts(case.config, case.template, records)
    assert [(p.turns[-1].content, p.reference) for p in train.asked.prompts] == twice[:2]
    assert dropped == {NO_ROOM: 1, CUT: 1}
    assert [train.tokens(0).tolist()] == [records.tokens(0).tolist()]
    only = replace(records, starts=records.starts[1:2], lengths=records.lengths[1:2],
                   answers=records.answers[1:2], source=records.source[1:2])  # fmt: skip
    assert as_prompts(case.config, case.template, only)[0].asked.prompts[0].reference == "second"
    with pytest.raises(UserError, match="no prompt is left to answer"):
        as_prompts(case.config.model_copy(update={"ppo": Ppo(max_new_tokens=31)}),
                   case.template, records)  # fmt: skip
