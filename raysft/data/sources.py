"""`data.path` to the files and hub datasets behind it, wherever they lie."""

import glob
import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from raysft.config.data import DEMO, Data, Source
from raysft.errors import UserError

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
SUFFIXES = (*KINDS, *(f"{kind}.gz" for kind in KINDS[:-1]))
RAY_TYPES = ("pickled_object", "tensor", "tensor_v2", "variable_shaped_tensor")


@dataclass(frozen=True)
class File:
    name: str  # as a person would write it
    size: int  # bytes
    filesystem: Any = None  # pyarrow's; None on this machine
    path: str = ""  # within the filesystem
    modified: str = ""

    @property
    def kind(self) -> str:
        return Path(self.name.removesuffix(".gz")).suffix

    @property
    def is_gzip(self) -> bool:
        return self.name.endswith(".gz")

    def open(self) -> IO[bytes]:
        if self.filesystem is None:
            return Path(self.name).open("rb")
        return io.BufferedReader(self.filesystem.open_input_file(self.path))


def sources(data: Data, paths: str | tuple[str | Source, ...]) -> list[Source]:
    """Every part of a mixture, with all its settings."""
    parts = [paths] if isinstance(paths, str) else paths
    result = []
    for part in parts:
        source = Source(path=part) if isinstance(part, str) else part
        keys = ("format", "fields", "subset", "split", "revision")
        absent = {key: getattr(data, key) for key in keys if getattr(source, key) is None}
        result.append(source.model_copy(update=absent))
    return result


def find_files(path: str) -> list[File]:
    """The files of a path, folder, glob or URI; none when it must be a hub id or the demo.

    Raises UserError when it does not exist or is of an unknown kind.
    """
    if path == DEMO:
        return []
    if "://" in path:
        files = find_remote(path)
    elif Path(path).is_dir():
        files = [local_file(p) for p in sorted(Path(path).iterdir()) if is_data(p.name)]
    elif glob.has_magic(path):
        found = sorted(glob.glob(path, recursive=True))
        files = [local_file(Path(p)) for p in found if Path(p).is_file()]
    elif Path(path).is_file():
        files = [local_file(Path(path))]
    elif looks_like_hub_id(path):
        return []
    else:
        raise UserError(f"data.path: there is no file {path}")
    if not files:
        raise UserError(f"data.path: {path} holds no {', '.join(KINDS)} file")
    for file in files:
        if not is_data(file.name):
            raise UserError(f"data.path: {file.name} is none of {', '.join(SUFFIXES)}")
    return files


def local_file(path: Path) -> File:
    return File(str(path), path.stat().st_size)


def is_data(name: str) -> bool:
    return name.endswith(SUFFIXES)


def looks_like_hub_id(path: str) -> bool:
    """`owner/name`, and nothing that a person would write for a file."""
    return path.count("/") == 1 and path[0] not in "./~" and not is_data(path)


def find_remote(uri: str) -> list[File]:
    """The files of a URI that pyarrow's filesystems take; its last part may be a glob.

    Options may follow, as in `s3://bucket/set/*.jsonl?region=eu-west-1`.
    """
    import pyarrow as pa
    from pyarrow import fs

    address, question, options = uri.partition("?") if re.search(r"\?\w+=", uri) else (uri, "", "")
    scheme, _, rest = address.partition("://")
    parent, _, pattern = rest.rpartition("/")
    if not glob.has_magic(pattern):
        parent, pattern = rest, ""
    try:
        filesystem, path = fs.FileSystem.from_uri(f"{scheme}://{parent}{question}{options}")
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            found = filesystem.get_file_info(fs.FileSelector(path))
        else:
            found = [info] if info.is_file and not pattern else []
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"data.path: {uri} cannot be read: {error}") from None
    prefix = f"{scheme}://{parent}".removesuffix(path)
    found = [f for f in found if f.is_file and fnmatch(f.base_name, pattern or "*")]
    if info.type == fs.FileType.Directory and not pattern:
        found = [f for f in found if is_data(f.base_name)]
    if not found and info.type == fs.FileType.NotFound:
        raise UserError(f"data.path: there is nothing at {uri}")
    return [
        File(prefix + f.path, f.size, filesystem, f.path, str(f.mtime))
        for f in sorted(found, key=lambda f: str(f.path))
    ]


def forget_pickled_columns() -> None:
    """Ray Data has a column type whose values are pickles, and some whose settings were: once it
    is imported, which Ray Train does, reading such a column of any Parquet file could run code.
    Without the types they are bytes and lists.
    """
    import pyarrow as pa

    for name in RAY_TYPES:
        with suppress(pa.ArrowKeyError):  # nobody has imported it
            pa.unregister_extension_type(f"ray.data.arrow_{name}")


def identity(source: Source, seed: int) -> str:
    """What tells the content of a source: equal for equal content.

    A digest of local files; name, size and time of remote ones; the fingerprint of a hub dataset.
    Raises UserError when a file cannot be read.
    """
    if source.path == DEMO:
        return f"demo, seed {seed}"
    files = find_files(source.path)
    if not files:
        return str(load_hub(source)._fingerprint)
    return " ".join(map(file_identity, files))


def file_identity(file: File) -> str:
    if file.filesystem is not None:
        return f"{file.name}:{file.size}:{file.modified}"
    try:
        with file.open() as stream:
            return file.kind + hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"data.path: {file.name} cannot be read: {error.strerror}") from None


def total_bytes(source: Source) -> int:
    """Size as stored; of a hub dataset, as loaded."""
    if source.path == DEMO:
        return 0
    files = find_files(source.path)
    return sum(file.size for file in files) if files else int(load_hub(source).data.nbytes)


@lru_cache(maxsize=32)
def _load_hub(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    import datasets

    forget_pickled_columns()
    try:
        return datasets.load_dataset(path, subset, split=split, revision=revision)
    except Exception as error:  # the library raises a different class for each way to fail
        raise UserError(
            f"data.path: {path!r} is no local file, and loading it from the Hugging Face hub "
            f"failed: {type(error).__name__}: {error}\n"
            f"Give data.path a local file ({', '.join(KINDS)}), or check name and connection."
        ) from None


def load_hub(source: Source) -> Any:
    return _load_hub(source.path, source.subset, source.split or "train", source.revision)
