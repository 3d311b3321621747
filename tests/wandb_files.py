"""What Weights & Biases keeps of a run offline, read from its files and not by its library."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK, HEADER = 32_768, 7  # bytes; of a file and of a record: https://github.com/google/leveldb
LAST = (1, 4)  # a whole record, and the last part of one


class OfflineRun(NamedTuple):
    id: str
    project: str
    name: str
    group: str
    config: dict[str, Any]
    history: list[dict[str, Any]]  # a line a step
    summary: dict[str, Any]
    files: list[str]
    exit_code: int | None


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file, which is a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no record begins so close to the end of a block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in LAST:
            yield Record.FromString(parts)
            parts = b""


def read_offline(path: Path) -> OfflineRun:
    config, history, summary, files = {}, [], {}, []
    run, code = None, None
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                config |= items(run.config.update)
            case "config":
                config |= items(record.config.update)
            case "history":
                history.append(items(record.history.item))
            case "summary":
                summary |= items(record.summary.update)
            case "files":
                files += [file.path for file in record.files.files]
            case "exit":
                code = record.exit.exit_code
    assert run is not None
    names = (run.run_id, run.project, run.display_name, run.run_group)
    return OfflineRun(*names, config, history, summary, files, code)


def items(found: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """The oldest first."""
    return [read_offline(path) for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]
