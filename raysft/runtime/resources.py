"""Whether the workers of a run fit into a cluster."""

from collections.abc import Iterable, Mapping, Sequence

from raysft.config.schema import Config
from raysft.errors import UserError


def places(nodes: Iterable[Mapping[str, float]], needs: Mapping[str, float]) -> list[int]:
    """How many workers each node holds, none of them spread over two.

    needs: what a worker takes, by kind; a kind of which it takes none does not count.
    """
    wanted = {kind: need for kind, need in needs.items() if need}
    return [min(int(node.get(kind, 0) // need) for kind, need in wanted.items()) for node in nodes]


def require_resources(config: Config, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises UserError at once where Ray would wait for ever for workers that cannot be placed.

    nodes: what each has in all, busy or not. Of [min, max] workers the fewest must fit.
    """
    scaling, workers = config.scaling, config.scaling.fewest
    needs = {"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus_per_worker}
    keys = {"CPU": "scaling.cpus_per_worker", "GPU": "scaling.gpus_per_worker"}
    for kind, need in needs.items():
        has = sum(int(node.get(kind, 0)) for node in nodes)
        if workers * need > has:
            advice = "lower scaling.workers or " + keys[kind]
            if kind == "GPU":
                advice = (
                    "train on the CPU with scaling.gpus_per_worker = 0, or lower scaling.workers"
                )
            raise UserError(
                f"too few {kind}s: {workers} workers x {need} need {workers * need}, and the "
                f"cluster has {has}: {advice}"
            )
    wanted = {kind: need for kind, need in needs.items() if need}
    room = places(nodes, wanted)
    if sum(room) < workers:
        words = " and ".join(f"{need} {kind}s" for kind, need in wanted.items())
        listed = ", ".join(map(str, room))
        raise UserError(
            f"too few places: a worker is on one node with its {words}, and the nodes have room "
            f"for {listed} of the {workers}: lower "
            + " or ".join(keys[kind] for kind in wanted)
            + ", or scaling.workers"
        )
