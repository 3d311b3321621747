"""Whether the workers of a run fit into a cluster."""

from raysft.config.schema import Config
from raysft.errors import UserError


def require_resources(config: Config, available: dict[str, float]) -> None:
    """Raises UserError at once where Ray would wait for ever for workers that cannot be placed.

    Of [min, max] workers the fewest must fit.
    """
    scaling, workers = config.scaling, config.scaling.fewest
    needs = {
        "CPU": (workers * scaling.cpus_per_worker, "scaling.cpus_per_worker"),
        "GPU": (workers * scaling.gpus_per_worker, "scaling.gpus_per_worker"),
    }
    for kind, (need, key) in needs.items():
        has = int(available.get(kind, 0))
        if need > has:
            advice = "lower scaling.workers or " + key
            if kind == "GPU":
                advice = (
                    "train on the CPU with scaling.gpus_per_worker = 0, or lower scaling.workers"
                )
            raise UserError(
                f"too few {kind}s: {workers} workers x {need // workers} need "
                f"{need}, and the cluster has {has}: {advice}"
            )
