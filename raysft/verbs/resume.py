"""Whether a run may start in a folder, or go on there with the config it is given now."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.train.checkpoint import repair

# What the saved state depends on: a change would load wrongly, or repeat or skip records.
FIXED = (
    "model", "data", "batch", "engine.precision", "engine.offload_optimizer",
    "engine.offload_params", "optim.name", "run.seed",
)  # fmt: skip
# What may differ without a word: of a run, and of a search.
FREE = (
    "run.name", "run.storage", "run.samples", "log", "checkpoint", "eval", "bench", "tune",
    "scaling.max_failures",
)  # fmt: skip
FREE_SEARCH = (
    "run.name", "run.storage", "log", "bench", "tune.num_trials", "tune.max_concurrent",
    "scaling.max_failures",
)  # fmt: skip


def admit(verb: str, run_dir: Path, config: Config, *, resume: bool) -> list[str]:
    """Warnings, if any. Raises UserError when the folder holds a run, or cannot be gone on with."""
    if resume:
        return CHECK_RESUME[verb](run_dir, config)
    if any((run_dir / started).exists() for started in rundir.STARTED):
        raise UserError(
            f"{run_dir} holds a run already: choose another --name, "
            + ("go on with it by --resume, " if verb in CHECK_RESUME else "")
            + "or remove it"
        )
    return []


def resumable(verb: str, run_dir: Path) -> bool:
    """Whether a run that was interrupted has left something to go on from."""
    if verb == "train":
        return bool(rundir.checkpoints(run_dir))
    return (run_dir / rundir.RESULTS).exists()


def check_resume(run_dir: Path, config: Config) -> list[str]:
    """Warnings. Raises UserError when there is nothing to resume, or the config does not fit it."""
    spec = rundir.read_json(run_dir / rundir.RUN)
    mended = repair.mend(run_dir)
    if not rundir.checkpoints(run_dir):
        raise UserError(
            f"{run_dir} has no checkpoint to resume from: start it under another --name"
        )
    changed = changes(spec["config"], config)
    fixed = {key: pair for key, pair in changed.items() if starts_with_any(key, FIXED)}
    refuse(fixed, f"{run_dir} cannot go on with other settings of its saved state")
    free = {key: pair for key, pair in changed.items() if not starts_with_any(key, FREE)}
    told = [f"{key} was {before!r} and is now {now!r}" for key, (before, now) in free.items()]
    return [mended, *told] if mended else told


def check_resume_search(run_dir: Path, config: Config) -> list[str]:
    """No warning. Raises UserError when there is no search, or its trials were others."""
    spec = rundir.read_json(run_dir / rundir.RUN)
    if not (run_dir / rundir.RESULTS).exists():
        raise UserError(f"{run_dir} has no trial to go on with: start it under another --name")
    if config.tune.scheduler == "pbt":
        raise UserError(
            f"{run_dir} cannot go on: under pbt the trials live off each other, and those that "
            "ended cannot be asked again. Start it under another --name"
        )
    changed = changes(spec["config"], config)
    others = {key: pair for key, pair in changed.items() if not starts_with_any(key, FREE_SEARCH)}
    refuse(others, f"{run_dir} cannot go on with trials that differ from those it has")
    return []


CHECK_RESUME: dict[str, Callable[[Path, Config], list[str]]] = {
    "train": check_resume,
    "tune": check_resume_search,
}


def changes(spec: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Key of the config: what it was, what it is."""
    before, now = flat(spec), flat(config.model_dump(mode="json"))
    keys = sorted(before.keys() | now.keys())
    return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}


def refuse(changed: dict[str, tuple[Any, Any]], message: str) -> None:
    """Raises UserError that lists every change, if there is one."""
    lines = [f"  {key}: {before!r} then, {now!r} now" for key, (before, now) in changed.items()]
    if lines:
        raise UserError("\n".join([message + ":", *lines]))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} to {"optim.lr": 1}."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def starts_with_any(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
