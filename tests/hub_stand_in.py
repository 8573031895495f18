"""A model hub on 127.0.0.1 that serves folders, counts what it sends, and can fail on purpose.

It speaks what the hub's library asks for (huggingface_hub, ``HfApi.model_info`` and
``hf_hub_download``): a repository's list with sizes, heads with commit and ETag, ranges.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

COMMIT = "a" * 40


class HubStandIn:
    """Repositories by their id, and how their requests shall fail."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.failures: dict[str, tuple[int, dict[str, str]]] = {}
        """By id: a status and headers to answer with."""
        self.failing_files: dict[str, tuple[int, dict[str, str]]] = {}
        self.cut: dict[str, int] = {}
        """By path: how many times the body of the whole rest ends in the middle."""
        self.tells_sizes = True
        self.hangs_s = 0.0
        self.ignores_ranges = False
        self.commit = COMMIT
        self.requests: list[str] = []
        self.sent: dict[str, int] = {}
        """Bytes by path."""
        self.url = ""

    def bytes_of(self, ending: str) -> int:
        """How much was sent of files whose names end so."""
        return sum(size for path, size in self.sent.items() if path.endswith(ending))


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Serve an empty hub on a free port."""
    hub = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def in_place_of_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Let the hub's library, in this process, ask a stand-in and keep its files in ``cache``."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_stand_in() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        time.sleep(self.hub.hangs_s)
        parts = path.split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        if failure := self.hub.failures.get(name):
            return self._fail(*failure)
        root = self.hub.repositories.get(name)
        if root is None:
            return self._fail(404, {"X-Error-Code": "RepoNotFound"})
        if parts[:2] == ["api", "models"]:
            return self._list(name, root)
        return self._file("/".join(parts[4:]), root)

    def _list(self, name: str, root: Path) -> None:
        siblings = []
        for path in sorted(root.rglob("*")):
            if path.is_file():
                one: dict[str, Any] = {"rfilename": path.relative_to(root).as_posix()}
                if self.hub.tells_sizes:
                    one |= {"size": path.stat().st_size, "blobId": "b" * 40}
                siblings.append(one)
        self._send(
            200,
            {"Content-Type": "application/json"},
            json.dumps({"id": name, "sha": self.hub.commit, "siblings": siblings}).encode(),
        )

    def _file(self, name: str, root: Path) -> None:
        if failure := self.hub.failing_files.get(name):
            return self._fail(*failure)
        if not (root / name).is_file():
            return self._fail(404, {"X-Error-Code": "EntryNotFound"})
        data = (root / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        if not wanted or self.hub.ignores_ranges:
            return self._send(200, headers, data, name)
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end) if end else len(data) - 1, len(data) - 1)
        if first > last:
            return self._fail(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, headers, data[first : last + 1], name)

    def _fail(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, headers, b'{"error": "no"}')

    def _send(self, status: int, headers: dict[str, str], body: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": self.hub.commit, **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        to_the_end = self.headers.get("Range", "-").endswith("-")
        if to_the_end and self.hub.cut.get(name, 0) > 0:
            self.hub.cut[name] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(piece)
