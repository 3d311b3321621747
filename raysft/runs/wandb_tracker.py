"""Weights & Biases. Address, key, entity and mode are its own environment variables: WANDB_*."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysft.runs.tracker import Line, Tracked, Tracker

PROCESSES = "wandb-"  # how the names begin of those that the library starts
EXIT_CODES = {"done": 0, "stopped": 0}  # it shows a run with another one as failed


def open_wandb(run: Tracked, parent: Tracker | None) -> Tracker:  # noqa: ARG001
    """Goes on with the run of this id where there is one. Trials are held together by their group.

    Raises what the library raises.
    """
    import wandb

    return WandbTracker(
        wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            group=run.group,
            job_type=run.kind,
            dir=run.folder,
            config={**nested(run.config), "stamp": dict(run.stamp)},
            allow_val_change=True,  # a resumed run may have other settings
            resume="allow",
            reinit="create_new",  # beside the other trials
            # Standard output carries events, and the stamp has the commit.
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        ),
    )


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr": 1} to {"optim": {"lr": 1}}: it forbids dots in the names of keys."""
    tables: dict[str, Any] = {}
    for key, value in config.items():
        *path, name = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    return tables


class WandbTracker:
    def __init__(self, there: Any) -> None:
        self.there = there

    def log(self, lines: Sequence[Line]) -> None:
        for step, values in lines:
            self.there.log(dict(values), step=step)

    def end(self, status: str, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        for file in files:
            copy = shutil.copy(file, self.there.dir)  # save would make a link, which moves badly
            self.there.save(copy, base_path=self.there.dir, policy="now")
        self.there.summary.update({"status": status, **numbers})
        self.there.finish(exit_code=EXIT_CODES.get(status, 1))
