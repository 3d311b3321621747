"""One file as a stream of its records' bytes, whatever it is compressed and encoded with."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".parquet", ".arrow")  # they compress their own columns
BLOCK = 1 << 20


def open_zstd(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    return cast(IO[bytes], pa.CompressedInputStream(stream, "zstd"))


COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": open_zstd,
}
SUFFIXES = (
    *KINDS,
    *(kind + end for kind in KINDS if kind not in BINARY for end in COMPRESSIONS),
)
ZIP = ".zip"
# What reading a damaged file of any of these may raise.
DAMAGE = (
    *(EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, UnicodeError),
    RuntimeError,  # a zip file with a password, or compressed in a way unknown to Python
)


@dataclass(frozen=True)
class File:
    name: str  # as a person would write it
    size: int  # bytes
    filesystem: Any = None  # pyarrow's; None on this machine
    path: str = ""  # within the filesystem, or where it differs from the name
    modified: str = ""
    member: str = ""  # of a zip file

    @property
    def suffixes(self) -> tuple[str, str]:
        """Its kind and its compression, as `.jsonl` and `.gz`; the second may be empty."""
        name = Path(self.name.lower())
        if name.suffix in COMPRESSIONS:
            return Path(name.stem).suffix, name.suffix
        return name.suffix, ""

    @property
    def kind(self) -> str:
        return self.suffixes[0]

    def open(self) -> IO[bytes]:
        """Its bytes as they lie there, those of a member of a zip file without compression."""
        if self.filesystem is not None:
            stream: IO[bytes] = io.BufferedReader(self.filesystem.open_input_file(self.path))
        elif self.member:
            stream = cast(IO[bytes], io.FileIO(self.path))
        else:
            return Path(self.path or self.name).open("rb")
        return zipfile.ZipFile(stream).open(self.member) if self.member else stream


def is_data(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def decompressed(stream: IO[bytes], file: File) -> IO[bytes]:
    """The content of an open file; of a text, as UTF-8 where it is UTF-16 or UTF-32."""
    kind, compression = file.suffixes
    if compression:
        stream = COMPRESSIONS[compression](stream)
    if kind in BINARY:
        return stream
    # Those of Python have a buffer of their own, and give what comes before a damaged place.
    buffered = cast(
        Any, stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    )
    encoding = json.detect_encoding(buffered.peek(4)[:4])  # by its mark, or by its zeros
    if encoding.startswith("utf-8"):
        return cast(IO[bytes], buffered)
    return io.BufferedReader(Recoded(buffered, encoding))


class Recoded(io.RawIOBase):
    """A stream of UTF-16 or UTF-32 as one of UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self.text = io.TextIOWrapper(stream, encoding, newline="")
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = memoryview(self.text.read(BLOCK).encode())
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def zip_members(file: File) -> list[zipfile.ZipInfo]:
    """Raises BadZipFile or OSError."""
    with file.open() as stream, zipfile.ZipFile(stream) as archive:
        return [info for info in archive.infolist() if not info.is_dir()]
