"""Which files of a folder are its records: of which split, and what is left out and why."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from raysft.data.containers import DAMAGE, KINDS, ZIP, File, is_data, zip_members
from raysft.errors import UserError

# The words by which the names of files and folders tell a split, as `datasets` takes them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
WORD = re.compile(rf"(?<![^\W\d_])({'|'.join(SPLIT_OF)})(?![^\W\d_])")
SHARD = re.compile(r"^data/(.+)-\d{5}-of-\d{5}")  # how the hub names the parts of a split
ABOUT_DATA = (  # written beside the records of a dataset or by the libraries that read it
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("config.json", "package.json", "metadata.json"),
)
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Listing:
    files: list[File]
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    has_splits: bool = False  # whether `data.split` says which files they are


def sorted_out(root: str, found: Iterable[tuple[str, File]], split: str) -> Listing:
    """Those of the files, named relative to their folder, that are records of the split.

    Raises UserError when the folder has other splits only.
    """
    files = dict(sorted(unzipped(found), key=lambda pair: pair[0]))
    left_out: dict[str, list[str]] = {}
    data: dict[str, File] = {}
    stale = stale_parts(files)
    for name, file in files.items():
        reason = "no part of the set by its state.json" if name in stale else why_left_out(name)
        if reason:
            left_out.setdefault(reason, []).append(file.name)
        else:
            data[name] = file
    is_saved = "dataset_dict.json" in files
    splits = {name: name.partition("/")[0] if is_saved else split_of(name) for name in data}
    chosen = names_of_split(root, splits, split)
    for name in data.keys() - chosen:
        reason = f"of split {splits[name]!r}" if splits[name] else "of no split"
        left_out.setdefault(reason, []).append(data[name].name)
    left_out = {reason: sorted(names) for reason, names in left_out.items()}
    files_of_split = [file for name, file in data.items() if name in chosen]
    return Listing(files_of_split, left_out, has_splits=True)


def names_of_split(root: str, splits: Mapping[str, str | None], split: str) -> set[str]:
    """Names of files that are of a split; all of them are of "train" where none tells its split.

    Raises UserError when there are others only.
    """
    wanted = {split, SPLIT_OF.get(split, split)}
    there = sorted({found for found in splits.values() if found})
    if not splits or (not there and "train" in wanted):
        return set(splits)
    if not wanted & set(there):
        known = f"its splits are {', '.join(there)}" if there else "no name of a file tells one"
        raise UserError(f"data.split: {root} has no split {split!r}; {known}")
    return {name for name, found in splits.items() if found in wanted}


def split_of(name: str) -> str | None:
    """Told by the file's own name, or else by the nearest folder; `name` is relative."""
    if shard := SHARD.match(name):
        return SPLIT_OF.get(shard[1], shard[1])
    for part in reversed(PurePosixPath(name).parts):
        if words := WORD.findall(part.lower()):
            return SPLIT_OF[words[0]]
    return None


def why_left_out(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    if is_hidden(name):
        return "hidden"
    if parts[-1] in ABOUT_DATA or parts[-1].startswith("cache-"):
        return "about the data, not records"
    if not is_data(name):
        return "none of " + ", ".join(KINDS)
    return None


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)


def stale_parts(files: Mapping[str, File]) -> set[str]:
    """Arrow files beside a state.json, which `save_to_disk` writes, that it does not name."""
    stale: set[str] = set()
    for name, file in files.items():
        folder, _, last = name.rpartition("/")
        if last != "state.json":
            continue
        try:
            with file.open() as stream:
                named = {part["filename"] for part in json.load(stream)["_data_files"]}
        except (*DAMAGE, ValueError, LookupError, TypeError):  # it is of something else
            continue
        beside = (other for other in files if other.endswith(".arrow"))
        stale |= {
            other
            for other in beside
            if other.rpartition("/")[0] == folder and PurePosixPath(other).name not in named
        }
    return stale


def unzipped(found: Iterable[tuple[str, File]]) -> Iterator[tuple[str, File]]:
    """The same files, with the members of a zip file in its place.

    Raises UserError when a zip file is damaged.
    """
    for name, file in found:
        if not file.name.lower().endswith(ZIP) or is_hidden(name):
            yield name, file
            continue
        try:
            members = zip_members(file)
        except DAMAGE as error:
            raise UserError(f"data.path: {file.name} cannot be read: {error}") from None
        for info in members:
            inner = f"{name}/{info.filename}".lstrip("/")
            path = file.path or file.name
            whole = replace(file, name=f"{file.name}/{info.filename}", path=path)
            yield inner, replace(whole, member=info.filename, size=info.file_size)


def as_named(found: Iterable[tuple[str, File]]) -> Listing:
    """All of the files, whatever they are called, and of zip files the members that are records.

    Raises UserError when a zip file is damaged.
    """
    listing = Listing([])
    for _, file in unzipped(found):
        reason = why_left_out(file.member) if file.member else None
        if reason:
            listing.left_out.setdefault(reason, []).append(file.name)
        else:
            listing.files.append(file)
    return listing


def walk(root: Path) -> Iterator[tuple[str, File]]:
    """All files below a folder, hidden folders as one, with their names relative to it.

    Raises UserError for a link that leads nowhere, and for a folder that cannot be read.
    """
    seen: set[Path] = set()

    def below(folder: Path) -> Iterator[Path]:
        real = folder.resolve()
        if real in seen:  # a link back to a folder that is read already
            return
        seen.add(real)
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not is_hidden(path.name):
                yield from below(path)
            else:
                yield path

    try:
        for path in below(root):
            yield path.relative_to(root).as_posix(), local_file(path)
    except OSError as error:
        place = error.filename or root
        raise UserError(f"data.path: {place} cannot be read: {error.strerror}") from None


def local_file(path: Path) -> File:
    """Raises UserError for a link that leads nowhere."""
    try:
        return File(str(path), path.stat().st_size)
    except OSError as error:
        if not path.is_symlink() or not is_data(path.name):
            return File(str(path), 0)
        raise UserError(
            f"data.path: {path} is a link to a file that cannot be read ({error.strerror}): mend "
            "or remove it"
        ) from None


def in_words(left_out: Mapping[str, list[str]]) -> str:
    """`a.txt, b.txt (why); c.txt (why)`, of each reason the first few."""
    parts = []
    for reason, names in left_out.items():
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        parts.append(f"{', '.join(names[:SHOWN])}{more} ({reason})")
    return "; ".join(parts)
