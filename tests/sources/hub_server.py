"""As much of the Hugging Face Hub as a reader of a data set asks for: commit, tree, ranges of files; gated or not."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves ``folder`` as datasets/owner/name, on a free port of 127.0.0.1.

    Attributes:
        token: who shows it may read; empty: everybody.
        ranges: the Range headers that came.
        tree: the list of files, where it is not that of the folder.
    """

    daemon_threads = True

    def __init__(self, folder: Path, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.token, self.ranges, self.tree = folder, token, list[str](), b""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:4] == ["api", "datasets", "owner", "name"]:
            self.api(parts[4:])
        elif parts[:4] == ["datasets", "owner", "name", "resolve"] and parts[4] == COMMIT:
            self.resolve("/".join(parts[5:]))
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def api(self, parts: list[str]) -> None:
        if parts[:1] == ["tree"] and self.server.tree:
            self.answer(200, self.server.tree)
        elif parts[:1] == ["tree"]:
            below = self.server.folder.joinpath(*parts[2:])
            paths = below.rglob("*") if "recursive=true" in self.path else below.iterdir()
            self.answer(200, json.dumps([self.entry(path) for path in sorted(paths)]).encode())
        else:
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT}).encode())

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.server.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
        digest = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": name, "oid": digest, "size": path.stat().st_size}

    def resolve(self, name: str) -> None:
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return
        content = (self.server.folder / name).read_bytes()
        self.server.ranges.append(self.headers["Range"])
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.answer(206, content[start : end + 1])

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
