"""Where runs were submitted to, kept on this machine, so that nobody types --address twice."""

import json
import os
from contextlib import suppress
from pathlib import Path

from raysft.config.of_run import run_folder
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.runs.provenance import without_secrets

ADDRESS = "address"  # of run.json: the dashboard that a run was submitted to
KEPT = 1000  # submissions


def record() -> Path:
    """A line of JSON for each submission, the oldest first."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "raysft" / "submitted.jsonl"


def as_kept(address: str) -> dict[str, str]:
    """The key of run.json, and of a line of the record: none for an address with a password."""
    return {ADDRESS: address} if without_secrets(address) == address else {}


def remember(job_id: str, name: str, address: str) -> None:
    """Without a word where it cannot be kept."""
    if not as_kept(address):
        return
    file = record()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines()[1 - KEPT :] if file.exists() else []
        lines.append(json.dumps({"job": job_id, "name": name, **as_kept(address)}))
        file.write_text("\n".join(lines) + "\n")


def find(name: str, address: str | None) -> tuple[str, str]:
    """The name of a run as its cluster knows it, and the address of that.

    name: of a run or its job, or a run's folder, whose run.json tells where it was submitted to.
    Raises UserError where the address is neither given nor known.
    """
    if folder := run_folder(name):
        spec = rundir.read_run(folder / rundir.RUN, "config")
        name = str(spec["config"].get("run", {}).get("name") or folder.resolve().name)
        address = address or spec.get(ADDRESS)
    if address := address or recorded(name):
        return name, str(address)
    if folder:
        raise UserError(
            f"{folder} was started on a machine, not on a cluster: Ctrl-C where it runs ends it "
            f"after a checkpoint, and `tail -f {folder / rundir.METRICS}` follows it"
        )
    raise UserError(
        f"--address is needed: {name} was not submitted from here, so give the address of its "
        "cluster's dashboard, such as http://HEAD:8265"
    )


def recorded(name: str) -> str | None:
    """Of the newest run of this name, or of the job of this id."""
    try:
        lines = record().read_text().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if name in (entry["job"], entry["name"]):
                return str(entry[ADDRESS])
    return None
