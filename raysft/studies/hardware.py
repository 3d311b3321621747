"""What a study ran on and what it took, in the words of its report."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raysft.runs.metrics import duration

VERSIONS = ("raysft", "torch", "ray", "deepspeed", "transformers")


def machine_facts(observed: Mapping[str, Any] | None, *, gpu: bool) -> list[tuple[str, str]]:
    """Hardware and versions; nothing where no worker told of them. observed: of provenance."""
    if not observed:
        return []
    versions = observed["versions"]
    return [
        ("hardware", hardware(observed, gpu=gpu)),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in VERSIONS)),
    ]


def machine_of(
    config: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """The same, as the first of the cases of a study told it, and how long all of them took.
    config: that results hold."""
    gpu = bool(config["scaling"]["gpus_per_worker"])
    machine = machine_facts(cases[0]["observed"] if cases else None, gpu=gpu)
    return machine + time_facts([case["seconds"] for case in cases if "seconds" in case])


def time_facts(seconds: Sequence[float]) -> list[tuple[str, str]]:
    """Nothing of results that do not tell: those of before this was measured."""
    if not seconds:
        return []
    each, together = duration(statistics.median(seconds)), duration(sum(seconds))
    return [("time", f"{len(seconds)} points of {each} in the median, {together} one by one")]


def layout(config: Mapping[str, Any]) -> str:
    """Workers and ZeRO stage, of the config that results hold."""
    workers = config["scaling"]["workers"]
    many = "" if workers == 1 else "s"
    return f"{workers} worker{many}, ZeRO stage {config['engine']['zero_stage']}"


def hardware(observed: Mapping[str, Any], *, gpu: bool) -> str:
    device = observed["gpu"] if gpu else f"{observed['cpu']} (CPU figures)"
    return f"{device}, {observed['cpu_count']} cores, {observed['memory_gib']} GiB"
