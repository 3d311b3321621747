"""As much of the Hugging Face hub as a push asks for, on loopback."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlparse

TOKEN = "hf_sentinelAAAA1"


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, takes regular files in the commit and large ones by LFS."""

    repos: dict[str, dict[str, bytes]]  # name -> its files
    made: dict[str, str | None]  # name -> visibility that was asked for
    stored: dict[str, bytes]  # by LFS, under their digest
    url: str
    environment: dict[str, str]

    def log_message(self, *_: Any) -> None: ...

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def do_PUT(self) -> None:
        digest = urlparse(self.path).path.rpartition("/")[2]
        content = self.body()
        good = hashlib.sha256(content).hexdigest() == digest
        if good:
            self.stored[digest] = content
        self.reply(200 if good else 400, {})

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name.startswith("others/"):
                self.reply(403, {"error": "You don't have the rights to create a model there"})
            elif name in self.repos:
                self.reply(409, {"error": "You already created this model repo",
                                 "url": f"{self.address()}/{name}"})  # fmt: skip
            else:
                self.repos[name], self.made[name] = {}, asked.get("visibility")
                self.reply(200, {"url": f"{self.address()}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+?/.+?)/(preupload|commit)/main", path):
            getattr(self, found[2])(self.repos[found[1]], found[1], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address()}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})
        else:
            self.reply(404, {"error": path})

    def preupload(self, _repo: dict[str, bytes], _name: str, body: bytes) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        self.reply(200, {"files": files})

    def commit(self, repo: dict[str, bytes], name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                repo[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo[value["path"]] = self.stored[value["oid"]]
        commit = "c" * 40
        url = f"{self.address()}/{name}/commit/{commit}"
        self.reply(200, {"success": True, "commitOid": commit, "commitUrl": url})


@contextmanager
def serving() -> Iterator[Any]:
    """A hub without repositories: `repos` and `made` of what is yielded, and `environment`."""

    class Own(Hub):
        repos, made, stored = {}, {}, {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    Thread(target=server.serve_forever, daemon=True).start()
    Own.url = f"http://127.0.0.1:{server.server_port}"
    Own.environment = {
        "HF_ENDPOINT": Own.url, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0",
        # Large files by LFS: Xet, which the client prefers, needs a server of another kind.
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    yield Own
    server.shutdown()
