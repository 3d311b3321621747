"""What ran where: who submitted it (light imports) and what the worker found (heavy imports)."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raysft import __version__
from raysft.config.secrets import PASSWORD, SECRET_OPTION

# Of a web address all before the "@", because a token often stands there without a name. Elsewhere
# a name alone is a container or an account, as in abfs://CONTAINER@ACCOUNT.
WEB_USER = re.compile(r"(?i)(https?://)[^/?#\s]*@")
PLACE = re.compile(r"\s*(/|~|\.\./|file:/)")
VERSIONS_OF = ("raysft", "torch", "ray", "deepspeed", "transformers", "tokenizers", "numpy")


def submission() -> dict[str, Any]:
    """Command, code version and UTC time. The git fields are null outside a checkout."""
    return {
        "command": shlex.join(["raysft", *map(without_secrets, sys.argv[1:])]),
        "version": __version__,
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def without_secrets(word: str) -> str:
    """A word of the command line with *** for what a URL in it holds of passwords and tokens."""
    word = WEB_USER.sub(r"\1***@", PASSWORD.sub("://***@", word))
    return SECRET_OPTION.sub(r"\1***", word)


def without_places(text: str, between: str = r"[\s=\"'()\[\]{},:;]+") -> str:
    """With the last part alone of every path in it that tells where somebody keeps things."""
    pieces = re.split(f"({between})", text)
    return "".join(Path(p).name if PLACE.match(p) else p for p in pieces)


def command_without_places(command: str) -> str:
    """The same of a command, whose paths may have spaces."""
    return shlex.join(without_places(word, r"[=\"'\[\]{},]") for word in shlex.split(command))


def _git(*args: str) -> str | None:
    """The output of git in the folder this package lives in, or None."""
    source = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def observed() -> dict[str, Any]:
    """Hardware and versions of the machine that calls this."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS_OF},
    }


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
