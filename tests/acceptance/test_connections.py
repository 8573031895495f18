"""Many clients that do nothing, or as good as nothing, don't keep a real server from others."""

import contextlib
import resource
import socket
import sys
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import CommandLine, Server

pytestmark = pytest.mark.slow

FILES = 256


class ServerOfFewFiles(Server):
    """A server that may open few files, so that few connections come to its limits."""

    def launch(self, **environment: str) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, before[1]))
        real, sys.executable = sys.executable, str(self._limited())
        try:
            super().launch(**environment)
        finally:
            sys.executable = real
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def _limited(self) -> Path:
        """An interpreter that lowers the hard limit too, which can't be raised again."""
        path = self.cli.root / "python"
        path.write_text(f'#!/bin/sh\nulimit -n {FILES}\nexec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return path


def test_more_idle_and_slow_connections_than_files(cli: CommandLine) -> None:
    server = ServerOfFewFiles(cli)
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        server.start()
        port = int(server.url.rpartition(":")[2])
        for number in range(2 * FILES):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            if number % 2:
                client.sendall(b"POST /v2/local/run HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            if number % 50 == 0:  # the server answers others in the middle of it
                assert httpx2.get(f"{server.url}/v2/local/health", timeout=60).status_code == 200
        assert httpx2.get(f"{server.url}/v2/local/health", timeout=60).status_code == 200
        assert server.ask(type="processes")["processes"] == []
        assert "out of system resource" not in server.log.read_text()
        assert server.log.read_text().count("\n") < 200
