"""Whether a run can go on with the config it is given now."""

from pathlib import Path
from typing import Any

from raysft import console, rundir
from raysft.config.schema import Config
from raysft.errors import UserError

# What the saved state depends on: a change would load wrongly, or repeat or skip records.
FIXED = ("model", "data", "batch", "engine", "scaling.workers", "optim.name", "run.seed")
# What may differ without a word.
FREE = ("run.name", "run.storage", "run.samples", "log", "checkpoint", "eval", "scaling", "bench")


def check_resume(run_dir: Path, config: Config) -> None:
    """Raises UserError when there is nothing to resume, or the config does not fit it."""
    spec = rundir.read_json(run_dir / rundir.RUN)
    if not rundir.checkpoints(run_dir):
        raise UserError(
            f"{run_dir} has no checkpoint to resume from: start it under another --name"
        )
    before, now = flat(spec["config"]), flat(config.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    fixed = [key for key in changed if starts_with_any(key, FIXED)]
    if fixed:
        lines = [f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in fixed]
        raise UserError(
            f"{run_dir} cannot go on with other settings of its saved state:\n" + "\n".join(lines)
        )
    for key in changed:
        if not starts_with_any(key, FREE):
            console.warning(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}")


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
