"""Checks of what the nodes share: storage and network."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from raysft.config.schema import Config
from raysft.doctor.advice import OPEN
from raysft.doctor.members import Member, answers
from raysft.doctor.node import LARGE
from raysft.runs.events import Check

LEAST_GBS = 0.1  # GB/s between nodes: a step of GPT-2 Large then waits a minute for the network


def check_storage(there: list[Member], storage: Path | None) -> Check:
    """A file written by the first node and read by all, and one of each read by the first."""
    if storage is None:
        return Check(
            "storage", "warn", "not checked: none is named", "--set run.storage=/shared/runs"
        )
    folder, first = str(storage / f".raysft-doctor-{uuid4().hex[:8]}"), there[0]
    written = answers({m.address: m.ask("write", folder, m.address) for m in there})
    unwritable = [m.address for m in there if not isinstance(written.get(m.address), str)]
    if unwritable:
        answers({m.address: m.ask("clean", folder) for m in there})
        return Check(
            "storage", "fail", f"{storage} cannot be written on {', '.join(unwritable)}",
            "mount it there, writable by the user that Ray runs as",
        )  # fmt: skip
    seen_there = answers({m.address: m.ask("read", folder, first.address) for m in there})
    seen_here = {
        m.address: answers({"": first.ask("read", folder, m.address)}).get("") for m in there
    }
    apart = [
        m.address
        for m in there
        if seen_there.get(m.address) != written[first.address]
        or seen_here[m.address] != written[m.address]
    ]
    answers({m.address: m.ask("clean", folder) for m in there})
    if apart:
        return Check(
            "storage", "fail",
            f"{storage} on {', '.join(apart)} is another folder than on {first.address}",
            "mount the same file system (NFS, EFS, Filestore, Lustre) at this path on every node",
        )  # fmt: skip
    return Check("storage", "pass", f"{storage} is the same on all nodes")


def check_network(config: Config, there: list[Member], facts: Mapping[str, Any]) -> Iterator[Check]:
    interfaces = {m.address: facts[m.address]["interface"] for m in there}
    named = ", ".join(f"{a} {name}" for a, name in interfaces.items())
    if None in interfaces.values():
        yield Check(
            "interface", "warn", f"none holds the node's address: {named}",
            "start Ray with --node-ip-address, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )  # fmt: skip
    else:
        yield Check("interface", "pass", named)
    if len(there) < 2:
        yield Check("network", "pass", "one node: none is used")
        return
    closed = check_ports(there)
    yield closed
    yield (
        check_all_reduce(config, there)
        if closed.status == "pass"
        else Check("all-reduce", "warn", "not tried: ports are closed")
    )


def check_ports(there: list[Member]) -> Check:
    listening = answers({m.address: m.ask("listen") for m in there})
    asked = {
        f"{one.address} to {other.address}": one.ask(
            "closed", other.address, {**other.ports, "a worker's": listening[other.address]}
        )
        for one in there
        for other in there
        if one is not other and isinstance(listening.get(other.address), int)
    }
    found = {way: closed for way, closed in answers(asked).items() if isinstance(closed, list)}
    wrong = [f"{way}: {', '.join(ports)}" for way, ports in found.items() if ports]
    wrong += [f"{way}: no answer" for way in asked if way not in found]
    silent = [m.address for m in there if not isinstance(listening.get(m.address), int)]
    wrong += [f"everywhere to {address}: it did not answer" for address in silent]
    if wrong:
        return Check("ports", "fail", f"closed from {'; '.join(wrong)}", OPEN)
    return Check("ports", "pass", "open from every node to every other")


def check_all_reduce(config: Config, there: list[Member]) -> Check:
    backend = "nccl" if config.on_gpu else "gloo"
    port = answers({"": there[0].ask("free_port")}).get("")
    master = f"{there[0].address}:{port}"
    asked = {
        m.address: m.ask("all_reduce", backend, master, rank, len(there))
        for rank, m in enumerate(there)
    }
    found = answers(asked)
    wrong = [str(f).strip().splitlines()[-1] for f in found.values() if isinstance(f, Exception)]
    if wrong or len(found) < len(there):
        return Check(
            "all-reduce", "fail", f"{backend} found no way between the nodes: "
            + (wrong[0] if wrong else "no answer"), OPEN,
        )  # fmt: skip
    small_s, large_s = (max(f[key] for f in found.values()) for key in ("small_s", "large_s"))
    # What each node sends and receives, as NCCL's own tests count it.
    gbs = 4 * LARGE * 2 * (len(there) - 1) / len(there) / large_s / 1e9
    words = f"{backend}: 4 KB in {small_s * 1e3:.1f} ms, 16 MB in {large_s * 1e3:,.0f} ms"
    words += f", {gbs:.2f} GB/s"
    if gbs < LEAST_GBS:
        return Check(
            "all-reduce",
            "warn",
            words,
            "ZeRO-3 sends all parameters thrice a step: a faster network, or engine.zero_stage 1",
        )
    return Check("all-reduce", "pass", words)
