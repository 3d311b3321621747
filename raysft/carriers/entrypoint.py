"""What every carrier runs."""

import shlex
from pathlib import Path


def entrypoint(run_json: Path) -> str:
    """The command of a run, the same for every carrier."""
    return f"python -m raysft.job {shlex.quote(str(run_json))}"
