"""Hub datasets, by the real `datasets` library from a hub of one repository on loopback."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

CARD = """---
configs:
- config_name: default
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: other
  data_files: [{split: train, path: test.jsonl}]
---
"""
COMMITS = {"a" * 40: 30, "b" * 40: 1}  # commit -> training records in it
REVISIONS = {"main": "a" * 40, "v1": "b" * 40} | {commit: commit for commit in COMMITS}


def files_at(commit: str) -> dict[str, bytes]:
    def rows(letter: str, count: int) -> bytes:
        records = ({"question": f"{letter}{i}", "answer": "a"} for i in range(count))
        return "".join(json.dumps(record) + "\n" for record in records).encode()

    return {
        "README.md": CARD.encode(),
        "train.jsonl": rows("q", COMMITS[commit]),
        "test.jsonl": rows("t", 10),
    }


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as loading a data set asks for."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        kind, _, rest = path.partition("/acme/qa")
        words = rest.strip("/").split("/")
        commit = REVISIONS.get(words[1] if len(words) > 1 else "main")
        if kind == "/api/datasets" and commit:
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in files_at(commit).items()
            ]
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            about = {"id": "acme/qa", "sha": commit, "siblings": siblings, "tags": []}
            self.reply(json.dumps(entries if words[0] == "tree" else about).encode(), {})
        elif kind == "/datasets" and commit and words[-1] in files_at(commit):
            data = files_at(commit)[words[-1]]
            tag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.reply(data, {"ETag": tag, "X-Repo-Commit": commit})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if commit else "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def reply(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


READ = """
import json, sys
from raysft.config.data import Source
from raysft.data.read import read_chunks
from raysft.data.sources import identity, total_bytes
source = Source(path="acme/qa", **json.loads(sys.argv[1]))
rows = [(f"{c.place} {n}", v) for c in read_chunks(source, 0, seed=0)
        for n, v in zip(c.numbers, c.values)]
print(json.dumps([rows, identity(source, 0), total_bytes(source)]))
"""


def read(hub: str, home: Path, **options: str) -> tuple[list[Any], str, int]:
    """In a process of its own: the library reads the hub's address when it is loaded."""
    settings = {"split": "train"} | options
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(settings)],
        env=environment | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows, key, size = json.loads(done.stdout.splitlines()[-1])
    return rows, key, size


def test_split_subset_and_revision_of_a_hub_dataset(hub: str, tmp_path: Path) -> None:
    train, key, size = read(hub, tmp_path)
    assert train[2] == ["acme/qa train row 3", {"question": "q2", "answer": "a"}]
    assert len(train) == 30
    assert size > 30 * 3
    test, other_key, _ = read(hub, tmp_path, split="test")
    assert [value["question"] for _, value in test] == [f"t{i}" for i in range(10)]
    assert other_key != key
    subset, _, _ = read(hub, tmp_path, subset="other")
    assert len(subset) == 10
    old, old_key, _ = read(hub, tmp_path, revision="v1")
    assert len(old) == 1
    assert old_key != key
