"""What a study ran on, in the words of its report."""

from collections.abc import Mapping
from typing import Any

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


def layout(config: Mapping[str, Any]) -> str:
    """Workers and ZeRO stage, of the config that results hold."""
    workers = config["scaling"]["workers"]
    many = "" if workers == 1 else "s"
    return f"{workers} worker{many}, ZeRO stage {config['engine']['zero_stage']}"


def hardware(observed: Mapping[str, Any], *, gpu: bool) -> str:
    device = observed["gpu"] if gpu else f"{observed['cpu']} (CPU figures)"
    return f"{device}, {observed['cpu_count']} cores, {observed['memory_gib']} GiB"
