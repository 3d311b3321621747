"""`raysft doctor`, where the job runs: every check of this machine or cluster, in turn."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from raysft.config.data import DEMO
from raysft.config.schema import Config
from raysft.doctor.links import check_network, check_storage
from raysft.doctor.machines import (
    check_answers,
    check_hub,
    check_machines,
    check_room,
    check_versions,
)
from raysft.doctor.members import answers, members
from raysft.runs import events
from raysft.runs.events import Check, Emit
from raysft.runtime.connect import EMBEDDED, shut_down_ray, start_ray


def examine(config: Config, emit: Emit, *, prove: bool) -> dict[str, Any]:
    """The summary: every check, and whether one has failed. Raises what `start_ray` does."""
    emit(events.Status("starting Ray"))
    start_ray(config)
    emit(events.Status("asking the nodes"))
    listed = []
    for check in checks(config, emit, prove=prove):
        listed.append(asdict(check))
        emit(check)
    shut_down_ray()
    failed = [check["name"] for check in listed if check["status"] == "fail"]
    summary: dict[str, Any] = {"checks": listed, "status": "failed" if failed else "done"}
    if failed:
        summary["error"] = f"{len(failed)} of {len(listed)} checks failed: {', '.join(failed)}"
    return summary


def checks(config: Config, emit: Emit, *, prove: bool) -> Iterator[Check]:
    storage = storage_of(config)
    everyone = members(config)
    question = ("facts", str(storage or "/"), hub_ids(config))
    facts = answers({m.address: m.ask(*question) for m in everyone})
    yield from check_answers(everyone, facts)
    there = [m for m in everyone if isinstance(facts.get(m.address), dict)]
    facts = {m.address: facts[m.address] for m in there}
    yield check_room(config, everyone)
    if not there:
        return
    yield check_versions(facts)
    yield from check_machines(config, there, facts, storage)
    yield check_hub(facts)
    yield check_storage(there, storage)
    yield from check_network(config, there, facts)
    for member in everyone:
        ray.kill(member.actor)  # the proof needs its GPU
    if prove:
        yield from proof(config, storage, len(there), emit)


def hub_ids(config: Config) -> list[str]:
    """What a run would look for on the hub: no model, where it is made from a shape."""
    model = config.model
    from_shape = model.init == "scratch" and model.shape is not None
    named = [None if from_shape else model.path, model.tokenizer_path]
    return list(dict.fromkeys(name for name in named if name not in (None, "", DEMO)))


def storage_of(config: Config) -> Path | None:
    """Where runs go, if that means the same on all nodes."""
    storage = Path(config.run.storage)
    return storage.resolve() if EMBEDDED else storage if storage.is_absolute() else None


def proof(config: Config, storage: Path | None, nodes: int, emit: Emit) -> Iterator[Check]:
    from raysft.doctor.prove import prove

    if storage is None:
        yield Check("proof", "fail", "it needs a storage", "--set run.storage=/shared/runs")
        return
    emit(events.Status("proving: losses and gradients against plain PyTorch"))
    room = room_for(config)
    yield from prove(config, storage, min(room, max(2, nodes)))


def room_for(config: Config) -> int:
    """Workers that the nodes hold now."""
    from raysft.runtime.scaling_policy import free_places

    needs = {"CPU": config.scaling.cpus_per_worker, "GPU": config.scaling.gpus_per_worker}
    return free_places(needs) or 1
