"""Tokenised sets on disk, found again by the content they were made from.

An entry is a folder of flat files that are mapped into memory, so a set may be larger than it. The
folder is `$XDG_CACHE_HOME/raysft` (`~/.cache/raysft`); the entries longest unused go when all of
them take more than `MAX_BYTES`.
"""

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysft.data.formats import PAIRS
from raysft.data.pipeline import Part
from raysft.data.rows import RECORD
from raysft.errors import UserError

MAX_BYTES = 20 << 30
LAYOUT = 3  # of the files of an entry: raised when they change
# The modules beside this one that make tokens of records: a change of one of them voids all
# entries, because nobody can tell what it changes. `pipeline` and what it imports; a test holds it.
TOKENISES = (
    *("borders", "containers", "demo", "encoding", "folders", "formats", "hub", "json_files"),
    *("layout", "pairs", "pipeline", "probe", "raw", "read", "render", "rows", "shapes"),
    *("sources", "tables", "template", "tokenize", "turns"),
)
FILES = {"input_ids": np.dtype(np.int32), "loss_mask": np.dtype(np.bool_), "records": RECORD}


@dataclass
class Counts:
    """What became of the records that were read."""

    formats: tuple[str, ...] = ()  # of each source
    num_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> place
    first_bad: str | None = None  # place and message of the first record that is wrong
    # character that the tokenizer cannot write -> records with it
    unwritten: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)  # field with text that is not read
    mapped: Counter[str] = field(default_factory=Counter)  # "source.known name" of data.fields
    files: tuple[str, ...] = ()  # as they were named when they were read

    @property
    def pairs(self) -> bool:
        return any(name in PAIRS for name in self.formats)

    def add(self, part: Part) -> None:
        self.num_read += part.num_read
        self.dropped += part.dropped
        self.unwritten += part.unwritten
        self.first_dropped = part.first_dropped | self.first_dropped
        self.first_bad = self.first_bad or part.first_bad
        self.unread += part.unread
        self.mapped += part.mapped

    def require_sound(self) -> None:
        """Raises UserError when a record was wrong."""
        if self.first_bad is not None:
            raise UserError(
                f"{self.first_bad}\n"
                'Mend it, or leave such records out with data.on_bad_record = "skip".'
            )


def with_names(counts: Counts, files: tuple[str, ...]) -> Counts:
    """The same of the same files under the names that they have now."""
    if not counts.files or counts.files == files:
        return counts
    now = dict(zip(counts.files, files, strict=True))
    longest_first = sorted(now, key=len, reverse=True)
    before = re.compile(rf"(?<!\S)(?:{'|'.join(map(re.escape, longest_first))})(?!\S)")

    def named(text: str) -> str:
        return before.sub(lambda found: now[found[0]], text)

    return replace(
        counts,
        dropped=Counter({named(reason): n for reason, n in counts.dropped.items()}),
        first_dropped={named(why): named(where) for why, where in counts.first_dropped.items()},
        first_bad=counts.first_bad and named(counts.first_bad),
        files=files,
    )


@dataclass(frozen=True)
class TokenisedSet:
    """R records as flat arrays over the files of a cache entry."""

    input_ids: NDArray[np.int32]  # [sum of lengths]
    loss_mask: NDArray[np.bool_]  # [sum of lengths]
    records: NDArray[Any]  # RECORD [R]
    counts: Counts


def key_for(*facts: Any) -> str:
    """Digest of what a set is made from, the code that tokenises among it."""
    code = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in TOKENISES]
    text = json.dumps([LAYOUT, *facts], default=str)
    return sha256(text.encode() + b"".join(code)).hexdigest()[:32]


def folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raysft" / "tokenised"


def load(key: str, files: tuple[str, ...] = ()) -> TokenisedSet | None:
    """The set of this key, if it is there. `files`: what those with this content are called."""
    entry = folder() / key
    if not entry.is_dir():
        return None
    os.utime(entry)  # so that it counts as used
    counts = json.loads((entry / "counts.json").read_text())
    for name in ("dropped", "unread", "mapped", "unwritten"):
        counts[name] = Counter(counts[name])
    counts |= {name: tuple(counts[name]) for name in ("formats", "files")}
    arrays = {name: read_array(entry / name, dtype) for name, dtype in FILES.items()}
    return TokenisedSet(**arrays, counts=with_names(Counts(**counts), files))


def read_array(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.stat().st_size:  # nothing to map
        return np.zeros(0, dtype)
    # As a plain array over the mapped file: of a subclass, Ray would copy the content.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def store(
    key: str,
    parts: Iterable[Part],
    formats: tuple[str, ...],
    files: tuple[str, ...] = (),
    *,
    skip_bad: bool,
) -> TokenisedSet:
    """Write the parts as they come, holding one at a time, and return the whole set.

    Raises UserError at the first bad record unless `skip_bad`, and where the folder cannot be
    written.
    """
    counts = Counts(formats=formats, files=files)
    partial = folder() / f"{key}.{os.getpid()}.partial"
    try:
        make_room()
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder()} cannot be written ({error.strerror}): set XDG_CACHE_HOME to a folder for "
            "tokenised data"
        ) from None
    try:
        with (
            (partial / "input_ids").open("wb") as input_ids,
            (partial / "loss_mask").open("wb") as loss_mask,
            (partial / "records").open("wb") as records,
        ):
            for part in parts:
                counts.add(part)
                if not skip_bad:
                    counts.require_sound()
                input_ids.write(part.input_ids.tobytes())
                loss_mask.write(part.loss_mask.tobytes())
                records.write(part.records.tobytes())
        (partial / "counts.json").write_text(json.dumps(vars(counts)))
        entry = folder() / key
        if not entry.is_dir():  # another process may have been faster
            partial.rename(entry)
    except OSError as error:
        raise UserError(
            f"tokenised data cannot be written to {folder()} ({error.strerror}): free some space, "
            "or set XDG_CACHE_HOME to a folder on another disk"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    loaded = load(key, files)
    assert loaded is not None
    return loaded


def make_room() -> None:
    """Remove what a killed process left half-written a day ago, and the longest unused entries."""
    entries = sorted(folder().glob("*"), key=lambda entry: entry.stat().st_mtime)
    sizes = {entry: sum(f.stat().st_size for f in entry.iterdir()) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        abandoned = entry.suffix == ".partial" and time.time() - entry.stat().st_mtime > 86_400
        if abandoned or (total > MAX_BYTES and entry.suffix != ".partial"):
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]
