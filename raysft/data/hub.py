"""Whether the Hugging Face hub has what a name stands for: asked once, and briefly."""

import difflib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from raysft.errors import UserError
from raysft.runs import rundir

WITHIN_S = 5.0  # for an answer; its libraries try for minutes, and print that they do
ALIKE = 0.7  # two names that may be meant for each other, as difflib measures it
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
SILENT: list[str] = []  # why it did not answer: it is not asked for another name then
SCRATCH = 'train from scratch with model.init = "scratch" and a model.shape, '
Kind = Literal["model", "dataset"]


class NoAnswer(UserError):
    """The hub does not answer, so that nobody knows whether it has that name."""


def require_on_hub(kind: Kind, name: str, key: str, revision: str | None = None) -> None:
    """Of a name that is no file or folder here.

    Raises UserError within seconds: the hub has no such name, or does not answer (NoAnswer) and it
    was not loaded before.
    """
    if is_cached(kind, name):
        return
    outcome, words = ask(kind, name, revision)
    if outcome == "there":
        return
    noun = "folder" if kind == "model" else "file"
    near = nearest(name, "" if kind == "dataset" else rundir.MODEL if "." in key else ".")
    hint = f"; did you mean {near!r}?" if near else ""
    if outcome == "none":
        raise UserError(
            f"{key}: {name!r} is no local {noun}, and the Hugging Face hub has no {kind} of that "
            f"name, or none for you to see{hint or '. Check its spelling, or log in'} ({words})"
        )
    scratch = SCRATCH if key == "model.path" else ""
    raise NoAnswer(
        f"{key}: {name!r} is no local {noun}, and the Hugging Face hub does not answer{hint} "
        f"({words}). Set it to a local {noun}, {scratch}or check the connection"
    )


def is_cached(kind: Kind, name: str) -> bool:
    """Whether some of it has been loaded to this machine."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    prepared = Path(constants.HF_HOME) / "datasets"
    if kind == "dataset":
        prepared = Path(os.environ.get("HF_DATASETS_CACHE", prepared))
    with suppress(OSError):
        if any(hub.iterdir()):
            return True
    return kind == "dataset" and (prepared / name.replace("/", "___")).is_dir()


@lru_cache(maxsize=64)
def ask(kind: Kind, name: str, revision: str | None) -> tuple[str, str]:
    """("there" | "none" | "silent", why)."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.is_offline_mode():
        return "silent", "HF_HUB_OFFLINE is set"
    if SILENT:
        return "silent", SILENT[0]
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=WITHIN_S)
    except (HfHubHTTPError, HFValidationError) as error:
        code = getattr(getattr(error, "response", None), "status_code", 404)
        return ("none" if code < 500 else "silent"), f"HTTP {code}"
    except Exception as error:  # each of the layers below has its own
        SILENT.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        return "silent", SILENT[0]
    return "there", ""


def nearest(name: str, of_run: str = "") -> str:
    """The local file or folder whose name is nearly this one's, or "".

    of_run: the folder of a run that is meant where it is a run's, "" where none can be.
    """
    beside = Path(name).parent
    runs = [path.parent for path in Path("runs").glob(f"*/{rundir.RUN}")] if of_run else []
    with suppress(OSError):
        for there in (runs, [path for path in beside.iterdir() if path.name[:1] != "."]):
            if found := most_like(Path(name).name, there):
                inside = found / of_run if of_run and (found / rundir.RUN).exists() else found
                return str(inside if inside.is_dir() or not of_run else found)
    return ""


def most_like(name: str, paths: Iterable[Path]) -> Path | None:
    by_name = {path.name: path for path in paths}
    close = difflib.get_close_matches(name, list(by_name), n=1, cutoff=ALIKE)
    return by_name[close[0]] if close else None
