"""Checks of what the nodes have told of themselves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.doctor.advice import OPEN
from raysft.doctor.members import ANSWERS_WITHIN_S, Member
from raysft.errors import UserError
from raysft.runs.events import Check
from raysft.runtime import ray_private
from raysft.runtime.resources import require_resources

GIB, MIB = 2**30, 2**20
# Below these a run of GPT-2 Large has no room for a batch, or for a checkpoint.
LEAST_MEMORY, LEAST_DISK = 4 * GIB, 20 * GIB
LEAST_SHM = 128 * MIB  # NCCL's, a pair of GPUs; Docker gives 64 MiB
Facts = Mapping[str, Any]  # of each node, by its address


def check_answers(everyone: list[Member], facts: Facts) -> Iterator[Check]:
    silent = [m.address for m in everyone if m.address not in facts]
    failed = {a: f for a, f in facts.items() if isinstance(f, Exception)}
    if silent:
        yield Check(
            "nodes", "fail", f"no answer from {', '.join(silent)} within {ANSWERS_WITHIN_S:.0f} s",
            f"{OPEN}; or a GPU of it was not free: wait for other jobs",
        )  # fmt: skip
    for address, error in failed.items():
        yield Check(
            "nodes", "fail", f"{address}: {str(error).strip().splitlines()[-1]}",
            "install raysft and what it needs on it, the same versions on all (constraints.txt)",
        )  # fmt: skip
    if not silent and not failed:
        named = ", ".join(f"{a} ({f['host']})" for a, f in facts.items())
        yield Check("nodes", "pass", f"{len(facts)}: {named}")


def check_room(config: Config, everyone: list[Member]) -> Check:
    count, scaling = config.scaling.count, config.scaling
    wanted = f"{scaling.cpus_per_worker} CPU" + (
        f" and {scaling.gpus_per_worker} GPU" if config.on_gpu else ""
    )
    try:
        require_resources(config, [m.resources for m in everyone])
    except UserError as error:
        message, _, advice = str(error).rpartition(": ")
        return Check("room", "fail", message, advice)
    return Check("room", "pass", f"for {count} workers with {wanted} each")


def check_versions(facts: Facts) -> Check:
    found = {
        a: {"python": f["observed"]["python"], **f["observed"]["versions"]}
        for a, f in facts.items()
    }
    mine = next(iter(found.values()))
    others = [
        f"{address} has {name} {versions[name]}, not {mine[name]}"
        for address, versions in found.items()
        for name in mine
        if versions[name] != mine[name]
    ]
    if others:
        return Check(
            "versions", "fail", "; ".join(others), "install the same on all nodes (constraints.txt)"
        )
    if missing := ray_private.missing_methods():
        return Check(
            "versions", "fail", f"this Ray lacks {', '.join(missing)}", ray_private.KNOWN_RAY
        )
    if warning := ray_private.version_warning():
        return Check("versions", "warn", warning)
    return Check("versions", "pass", ", ".join(f"{name} {v}" for name, v in mine.items() if v))


def check_machines(
    config: Config, there: list[Member], facts: Facts, storage: Path | None
) -> Iterator[Check]:
    """GPUs, memory, disks, shared memory and compiler, each for all nodes at once."""
    by_node = {m.address: facts[m.address] for m in there}
    yield check_gpus(config, there, by_node)
    memory = {a: f["memory_free"] for a, f in by_node.items()}
    yield least("memory", memory, LEAST_MEMORY, "end what else uses it, or take larger machines")
    disks = {f"{a} Ray's folder": f["session_free"] for a, f in by_node.items()}
    disks |= {f"{a} storage": f["storage_free"] for a, f in by_node.items() if storage}
    yield least("disk", disks, LEAST_DISK, "make room: a checkpoint of GPT-2 Large takes 11 GiB")
    yield check_shm(there, by_node)
    missing = [a for a, f in by_node.items() if f["compiler"] is None]
    if missing:
        yield Check(
            "compiler", "warn", f"no C++ compiler or no ninja on {', '.join(missing)}",
            "apt-get install g++ there, pip install ninja: without them DeepSpeed's CPU Adam is "
            "not built, and PyTorch's takes its place",
        )  # fmt: skip
    else:
        yield Check("compiler", "pass", ", ".join({f["compiler"] for f in by_node.values()}))


def check_gpus(config: Config, there: list[Member], facts: Facts) -> Check:
    counted = {m.address: int(m.resources.get("GPU", 0)) for m in there}
    # An actor sees the one that Ray gave it.
    blind = [a for a, count in counted.items() if count and config.on_gpu and not facts[a]["gpus"]]
    if blind:
        return Check(
            "GPUs", "fail", f"PyTorch sees none of Ray's on {', '.join(blind)}",
            "check the driver with nvidia-smi there, and that torch is a CUDA build",
        )  # fmt: skip
    if config.on_gpu and not any(counted.values()):
        return Check("GPUs", "fail", "none", "train on CPUs with scaling.gpus_per_worker = 0")
    if not any(counted.values()):
        return Check("GPUs", "pass", "none, and none is asked for")
    names = {name for f in facts.values() for name in f["gpus"]} or {"not looked at"}
    return Check("GPUs", "pass", f"{sum(counted.values())}, {', '.join(sorted(names))}")


def least(name: str, found: Mapping[str, int], limit: int, advice: str) -> Check:
    """A warning where a node has less than the limit, in bytes."""
    listed = {where: f"{where} {free / GIB:,.1f} GiB free" for where, free in found.items()}
    short = [listed[where] for where, free in found.items() if free < limit]
    if short:
        return Check(name, "warn", ", ".join(short), advice)
    return Check(name, "pass", ", ".join(listed.values()))


def check_shm(there: list[Member], facts: Facts) -> Check:
    words, worst = [], "pass"
    for member in there:
        size, store = facts[member.address]["shm"], member.resources.get("object_store_memory", 0)
        words.append(f"{member.address} {size / GIB:,.1f} GiB")
        if size < LEAST_SHM:
            worst = "fail"
        elif size < store and worst == "pass":
            worst = "warn"
            words[-1] += f", less than Ray's object store of {store / GIB:,.1f}"
    if worst == "pass":
        return Check("/dev/shm", "pass", ", ".join(words))
    advice = (
        "docker run --shm-size=8g, or a memory volume at /dev/shm: Ray's objects and NCCL need it"
    )
    return Check("/dev/shm", "fail" if worst == "fail" else "warn", ", ".join(words), advice)


def check_hub(facts: Facts) -> Check:
    found = {address: f["hub"] for address, f in facts.items()}
    wrong = [
        f"{hub_id} is {state} on {address}"
        for address, states in found.items()
        for hub_id, state in states.items()
        if state not in ("folder", "cached", "reachable")
    ]
    if wrong:
        return Check(
            "model", "fail", "; ".join(wrong),
            "give every node a way to the hub, its cache (HF_HOME) on shared storage, or a folder",
        )  # fmt: skip
    states = next(iter(found.values()))
    words = ", ".join(f"{hub_id} is {state}" for hub_id, state in states.items())
    return Check("model", "pass", words or "from scratch, with the built-in tokenizer")
