"""Findings that cannot be made to happen here; the others are, in tests/ray/test_two_hosts.py."""

from typing import Any

import pytest

from raysft.config.load import load_config
from raysft.doctor.examine import hub_ids
from raysft.doctor.machines import (
    GIB,
    check_answers,
    check_gpus,
    check_hub,
    check_room,
    check_shm,
    least,
)
from raysft.doctor.members import Member
from raysft.doctor.node import where_is
from raysft.runtime.network import interface_of

CPU, GPU = load_config("gpt2-tiny-cpu"), load_config("gpt2-tiny-cpu", ["scaling.gpus_per_worker=1"])


def node(address: str, **resources: float) -> Member:
    return Member(address, {}, {"CPU": 2.0, **resources}, actor=None)


def test_gpus_that_pytorch_does_not_see() -> None:
    there = [node("a", GPU=1.0), node("b", GPU=1.0)]
    found = check_gpus(GPU, there, {"a": {"gpus": ["H100"]}, "b": {"gpus": []}})
    assert (found.status, found.found) == ("fail", "PyTorch sees none of Ray's on b")
    found = check_gpus(GPU, there, {"a": {"gpus": ["H100"]}, "b": {"gpus": ["H100"]}})
    assert (found.status, found.found) == ("pass", "2, H100")


def test_gpus_that_are_not_there() -> None:
    assert check_gpus(GPU, [node("a")], {"a": {"gpus": []}}).status == "fail"
    assert check_gpus(CPU, [node("a")], {"a": {"gpus": []}}).status == "pass"


def test_a_node_that_does_not_answer_or_has_no_raysft() -> None:
    everyone = [node("a"), node("b"), node("c")]
    facts = {"a": {"host": "x"}, "b": RuntimeError("long\nNo module named 'raysft'")}
    silent, broken = check_answers(everyone, facts)
    assert (silent.status, silent.found) == ("fail", "no answer from c within 60 s")
    assert (broken.status, broken.found) == ("fail", "b: No module named 'raysft'")


def test_no_room_for_the_workers_of_the_config() -> None:
    found = check_room(CPU, [node("a", CPU=1.0)])
    assert found.status == "fail"
    assert found.found == "too few CPUs: 2 workers x 1 need 2, and the cluster has 1"
    assert found.advice == "lower scaling.workers or scaling.cpus_per_worker"


@pytest.mark.parametrize(
    ("gib", "store", "status"), [(8, 4, "pass"), (2, 4, "warn"), (0.06, 4, "fail")]
)
def test_shared_memory_against_the_object_store(gib: float, store: float, status: str) -> None:
    there = [node("a", object_store_memory=store * GIB)]
    assert check_shm(there, {"a": {"shm": int(gib * GIB)}}).status == status


def test_little_memory() -> None:
    found = least("memory", {"a": 5 * GIB, "b": 1 * GIB}, 4 * GIB, "more")
    assert (found.status, found.found) == ("warn", "b 1.0 GiB free")


def test_a_model_that_one_node_cannot_get() -> None:
    facts: dict[str, Any] = {
        "a": {"hub": {"gpt2": "cached"}},
        "b": {"hub": {"gpt2": "not reachable (ConnectTimeout)"}},
    }
    found = check_hub(facts)
    assert found.status == "fail"
    assert found.found == "gpt2 is not reachable (ConnectTimeout) on b"


def test_where_a_model_is(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert where_is(str(tmp_path)) == "folder"
    assert where_is("./no/such/folder") == "no such folder"
    assert where_is("nobody/nothing").startswith("not reachable")


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ([], ["openai-community/gpt2-large"]),
        (["model.tokenizer=mine"], ["openai-community/gpt2-large", "mine"]),
        (["model.init=scratch"], ["openai-community/gpt2-large"]),  # for its tokenizer
        (["model.init=scratch", "model.tokenizer=mine"], ["mine"]),
        (["model.init=scratch", "model.shape=none"], ["openai-community/gpt2-large"]),
    ],
)
def test_the_hub_is_asked_for_what_a_run_would_load(settings: list[str], asked: list[str]) -> None:
    assert hub_ids(load_config("gpt2-large", settings)) == asked
