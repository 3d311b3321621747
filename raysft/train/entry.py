"""What Ray Train carries to a worker. Imports nothing heavy.

Ray's controller unpickles it too, in a process of its own that trains nothing: it is to load
neither torch nor transformers for that.
"""

from typing import Any


def train_entry(options: dict[str, Any]) -> dict[str, Any]:
    """Unpickle the job, fetch the data and train."""
    import ray

    from raysft.train.worker import train_worker

    train, heldout = ray.get([options["train"], options["heldout"]])
    return train_worker(ray.cloudpickle.loads(options["job"]), train, heldout, options["events"])
