"""Whether a run may start in a folder, or go on there with the config it is given now."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.config.of_run import flat
from raysft.config.renamed import as_named_now
from raysft.errors import UserError
from raysft.runs import rundir
from raysft.verbs.verb import Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def admit(verb: Verb, run_dir: Path, config: "Config", *, resume: bool) -> list[str]:
    """Warnings, if any. Raises UserError when the folder holds a run, or cannot be gone on with."""
    if resume:
        assert verb.check_resume is not None  # no other verb has the option
        return verb.check_resume(run_dir, config)
    started = any((run_dir / file).exists() for file in rundir.STARTED)
    if started or verb.has_left(run_dir):
        if verb.check_resume and verb.has_left(run_dir):
            advice = ": choose another --name, go on with it by --resume, or remove it"
        elif verb.check_resume:
            advice = f", which {rundir.NOTHING_LEFT}"
        else:
            advice = ": choose another --name, or remove it"
        raise UserError(f"{run_dir} holds a run already{advice}")
    return []


def how_to_resume(before: str, where: str) -> Callable[[Summary], str]:
    """The words after an interrupt: the command that goes on, or that it came before anything."""

    def words(summary: Summary) -> str:
        run_dir = Path(summary["run_dir"])
        if not summary["resumable"]:
            return f"interrupted before {before}: {run_dir} {rundir.NOTHING_LEFT}"
        command = shlex.split(summary["stamp"]["command"])
        command += [] if "--name" in command else ["--name", run_dir.name]
        command += [] if "--resume" in command else ["--resume"]
        command = [word for word in command if word != "--accept-changes"]  # has been said of this
        return f"interrupted; go on {where} with\n  {shlex.join(command)}"

    return words


def changes(spec: dict[str, Any], config: "Config") -> dict[str, tuple[Any, Any]]:
    """Key of the config: what it was, what it is. Without [adapter], which an older version did not
    know, it was as by default."""
    known = {"adapter": type(config).model_fields["adapter"].default.model_dump(mode="json")}
    before, now = flat(known | as_named_now(spec)), flat(config.model_dump(mode="json"))
    keys = sorted(before.keys() | now.keys())
    return {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}


def refuse(changed: dict[str, tuple[Any, Any]], message: str, advice: str = "") -> None:
    """Raises UserError that lists every change, if there is one."""
    lines = [f"  {key}: {before!r} then, {now!r} now" for key, (before, now) in changed.items()]
    if lines:
        raise UserError("\n".join([message + ":", *lines, advice]).strip())


def starts_with_any(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
