"""What is chosen when the device or the day is known, told, and kept in run.json."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.config.of_run import CHOSEN as CHOSEN
from raysft.config.of_run import flat
from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit

if TYPE_CHECKING:
    from raysft.config.schema import Config


def settled(
    config: "Config", hf_config: Any, run_dir: Path, emit: Emit, *, draws: bool = False
) -> "Config":
    """The config without an "auto". Ray must be there. Writes it to run.json.

    draws: it answers prompts itself, and holds what that takes beside the engine.
    """
    if not config.left_open:
        return config
    from raysft.estimate.adapters import adapted
    from raysft.estimate.answers import beside_gib
    from raysft.estimate.choose import choose
    from raysft.estimate.families import dims_of_family
    from raysft.runtime.device import device_there

    device = device_there(config)
    dims = dims_of_family(hf_config.to_dict())
    dims = adapted(dims, config.adapter) if dims else None
    beside = sum(beside_gib(config, dims).values()) if draws and dims else 0.0
    chosen, why = choose(config, dims, max(0.0, device.memory_gib - beside))
    why += f"; {beside:.1f} more are held beside it" if beside else ""
    emit(events.Chosen(f"{why} ({device.name})"))
    file = run_dir / rundir.RUN
    values = flat(chosen.model_dump(mode="json"))
    spec = rundir.read_json(file) | {"config": chosen.model_dump(mode="json")}
    rundir.write_json(file, spec | {CHOSEN: {key: values[key] for key in config.left_open}})
    return chosen


def chosen_before(run_dir: Path) -> dict[str, Any]:
    """What "auto" came to in the run of this folder; nothing where there is none."""
    try:
        chosen = rundir.read_json(run_dir / rundir.RUN).get(CHOSEN)
    except UserError:  # told by whoever needs the run
        return {}
    return chosen if isinstance(chosen, dict) else {}


def as_chosen(config: "Config", chosen: dict[str, Any]) -> "Config":
    """A run that goes on takes for "auto" what it took before, whatever the device is now."""
    from raysft.config.load import validate, with_overrides

    kept = {key: chosen[key] for key in config.left_open if key in chosen}
    if not kept:
        return config
    return validate(with_overrides(config.model_dump(mode="json"), kept), "auto")


def dated(config: "Config", run_dir: Path, *, resume: bool) -> "Config":
    """The day that its prompts may name is that of the first start, whenever a run goes on."""
    day: str | None = f"{date.today():%Y-%m-%d}"
    if resume:
        try:
            spec = rundir.read_run(run_dir / rundir.RUN, "config")
            day = spec["config"].get("data", {}).get("date")
        except UserError:  # told by whoever needs the run, or known where the job runs
            day = None
    if day is None or config.data.date is not None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})
