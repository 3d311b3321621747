"""`data.path` to the files and hub datasets behind it, wherever they lie."""

import glob
import hashlib
import re
from contextlib import suppress
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysft.config.data import DEMO, Data, Source
from raysft.data.containers import COMPRESSIONS, KINDS, ZIP, File, is_data
from raysft.data.folders import Listing, as_named, local_file, sorted_out, walk
from raysft.data.hub import nearest, require_on_hub
from raysft.errors import UserError

RAY_TYPES = ("pickled_object", "tensor", "tensor_v2", "variable_shaped_tensor")


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


def find_files(source: Source) -> Listing:
    """The files of a path, folder, glob or URI; none when it must be a hub id or the demo.

    Raises UserError when it does not exist or is of an unknown kind, and where `split`, `subset`
    or `revision` is set that means nothing for it.
    """
    path, split = source.path, source.split or "train"
    if path == DEMO:
        return Listing([])
    if "://" in path:
        listing = find_remote(path, split)
    elif Path(path).is_dir() or (path.lower().endswith(ZIP) and Path(path).is_file()):
        inside = walk(Path(path)) if Path(path).is_dir() else [("", local_file(Path(path)))]
        listing = sorted_out(path, inside, split)
    elif Path(path).is_file() or Path(path).is_symlink():
        listing = Listing([local_file(Path(path))])
    elif glob.has_magic(path):
        listing = find_glob(path)
    elif looks_like_hub_id(path):
        return Listing([])
    else:
        near = nearest(path)
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"data.path: there is no file {path}{hint}")
    if not listing.files:
        raise UserError(f"data.path: {path} holds no {', '.join(KINDS)} file")
    for file in listing.files:
        if not is_data(file.name):
            raise UserError(
                f"data.path: {file.name} is none of {', '.join(KINDS)}, nor one of these with "
                f"{', '.join(COMPRESSIONS)} after it"
            )
    refuse_hub_keys(source, listing)
    return listing


def refuse_hub_keys(source: Source, listing: Listing) -> None:
    """Raises UserError for what would do nothing to files."""
    split = None if listing.has_splits or source.split == "train" else source.split
    keys = {"split": split, "subset": source.subset, "revision": source.revision}
    for key, value in keys.items():
        if value is not None:
            raise UserError(
                f"data.{key} = {value!r} does nothing for {source.path}: leave it out and name the "
                "file or folder that is meant. In a mixture, set it for the part that it is for: "
                f'{{ path = "...", {key} = "{value}" }}'
            )


def find_glob(pattern: str) -> Listing:
    """Raises UserError when a zip file among them is damaged."""
    found = sorted(glob.glob(pattern, recursive=True))
    files = [(name, local_file(Path(name))) for name in found if not Path(name).is_dir()]
    folders = [
        name
        for name in found
        if Path(name).is_dir() and not any(Path(name) in Path(file).parents for file, _ in files)
    ]
    listing = as_named(files)
    if folders:
        listing.left_out["a folder, of which a glob takes no files"] = folders
    return listing


def looks_like_hub_id(path: str) -> bool:
    """`owner/name`, and nothing that a person would write for a file."""
    return path.count("/") == 1 and path[0] not in "./~" and not is_data(path)


def find_remote(uri: str, split: str) -> Listing:
    """The files of a URI that pyarrow's filesystems take; its last part may be a glob.

    Options may follow, as in `s3://bucket/set/*.jsonl?region=eu-west-1`. Raises UserError.
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
            found = filesystem.get_file_info(fs.FileSelector(path, recursive=not pattern))
        else:
            found = [info] if info.is_file and not pattern else []
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"data.path: {uri} cannot be read: {error}") from None
    if not found and info.type == fs.FileType.NotFound:
        raise UserError(f"data.path: there is nothing at {uri}")
    prefix = f"{scheme}://{parent}".removesuffix(path)
    files = [
        (f.path.removeprefix(path).lstrip("/"),
         File(prefix + f.path, f.size, filesystem, f.path, str(f.mtime)))
        for f in found
        if f.is_file and fnmatch(f.base_name, pattern or "*")
    ]  # fmt: skip
    if not pattern and (info.type == fs.FileType.Directory or path.lower().endswith(ZIP)):
        return sorted_out(uri, files, split)
    return as_named(sorted(files, key=lambda pair: pair[1].name))


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
    files = find_files(source).files
    if not files:
        return str(load_hub(source)._fingerprint)
    digests = {file.path or file.name: "" for file in files}  # of a zip file with many members, one
    for file in files:
        place = file.path or file.name
        digests[place] = digests[place] or file_identity(file)
    return " ".join(file.kind + file.member + digests[file.path or file.name] for file in files)


def file_identity(file: File) -> str:
    """Of the whole file, not of a member. Raises UserError when it cannot be read."""
    if file.filesystem is not None:
        return f"{file.name}:{file.size}:{file.modified}"
    try:
        with Path(file.path or file.name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"data.path: {file.name} cannot be read: {error.strerror}") from None


def file_names(source: Source) -> list[str]:
    """What errors call the places where its records lie."""
    return [file.name for file in find_files(source).files] or [source.path]


def total_bytes(source: Source) -> int:
    """Size as stored; of a hub dataset, as loaded."""
    if source.path == DEMO:
        return 0
    files = find_files(source).files
    return sum(file.size for file in files) if files else int(load_hub(source).data.nbytes)


@lru_cache(maxsize=32)
def _load_hub(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    require_on_hub("dataset", path, "data.path", revision)
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
