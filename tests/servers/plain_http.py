"""A plain client of HTTP: the program curl where there is one, else Python's own."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from typing import Any


class RefusedError(Exception):
    """A reply that refuses; its body is the message."""


def curl(url: str, headers: dict[str, str] | None = None, body: Any = None) -> bytes:
    """Return what a server answers to a GET, or with a body to a POST. Raises for refusals."""
    data = None if body is None else json.dumps(body).encode()
    headers = headers or {}
    if not shutil.which("curl"):
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                content: bytes = reply.read()
        except urllib.error.HTTPError as error:
            raise RefusedError(error.read().decode()) from error
        return content
    command = ["curl", "-sS", "--fail-with-body", "-m", "120", url]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    command += [] if data is None else ["-d", "@-"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        raise RefusedError((done.stdout or done.stderr).decode())
    return done.stdout
