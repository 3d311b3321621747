"""What travels with a job to a cluster: run.json, local files and, if asked, the code."""

import glob
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import raysft
from raysft.config.data import DEMO
from raysft.config.schema import Config
from raysft.errors import UserError
from raysft.runs import rundir

SHIPPED_MIB = 64  # at most, all files together: they go through the memory of the head node


def pack(spec: Mapping[str, Any], config: Config, folder: Path, *, code: bool) -> None:
    """Fill `folder`, which becomes the working directory of the job.

    A relative path that is here is shipped and keeps its name; an absolute one is the cluster's.
    Raises UserError: more than SHIPPED_MIB, or a file outside this directory.
    """
    paths = list(local_paths(config))
    refuse_large(paths)
    for path in paths:
        if not path.resolve().is_relative_to(Path.cwd()):
            raise UserError(
                f"{path} lies outside {Path.cwd()}, and is not shipped: start from a folder above "
                "it, or give the absolute path that it has on the cluster"
            )
        copy(path, folder / path)
    if code:
        source = Path(raysft.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / source.name, ignore=ignored, dirs_exist_ok=True)
    rundir.write_json(folder / rundir.RUN, spec)


def local_paths(config: Config) -> Iterator[Path]:
    """The files and folders of a config that are relative and exist here."""
    data = config.data
    named = [config.model.path, config.model.tokenizer, data.template]
    for part in (data.path, data.eval_path):
        sources = [part] if isinstance(part, str) else part or ()
        named += [source if isinstance(source, str) else source.path for source in sources]
    for name in dict.fromkeys(filter(None, named)):
        if Path(name).is_absolute() or "://" in name or name == DEMO:
            continue
        if Path(name).exists():
            yield Path(name)
        elif glob.has_magic(name):
            yield from (Path(found) for found in sorted(glob.glob(name, recursive=True)))


def refuse_large(paths: list[Path]) -> None:
    """Raises UserError."""
    mib = {path: size_bytes(path) / 2**20 for path in paths}
    if sum(mib.values()) > SHIPPED_MIB:
        listed = ", ".join(f"{path} {size:,.0f} MiB" for path, size in mib.items())
        raise UserError(
            f"too large to travel with the job, which takes {SHIPPED_MIB} MiB: {listed}. Put it "
            "where every node can read it, and give the absolute path it has there"
        )


def size_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


def copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copy2(path, target)
