"""A real S3 server as a child process: started, paused, stopped, started again where it was."""

import abc
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)
_START_TRIES = 3
_STOP_S = 2.0  # SeaweedFS would wait 15 s for connections of its own; nothing is lost by less


class S3Server(abc.ABC):
    """A server in a folder of its own, with random keys. A context manager.

    Does not start by itself: `start`, or ``with``. Fails loudly, with the end of the log.
    """

    program: str
    """Name of the executable."""
    package: str
    """What must be installed for it."""
    region = "us-east-1"

    def __init__(self, ready_s: float = 90) -> None:
        self.access_key_id = secrets.token_hex(10).upper()
        self.secret_access_key = secrets.token_hex(20)
        self.folder = Path()
        self.port = 0
        self._ready_s = ready_s
        self._buckets = 0
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Return the arguments for the ports and the folder that were chosen."""

    @abc.abstractmethod
    def choose_ports(self) -> None:
        """Choose ports, before the first start."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make what must be in the folder before the first start."""

    def environment(self) -> dict[str, str]:
        """Return what the program finds in its environment, beside ours."""
        return {}

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process, "the server isn't running"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> Self:
        """Start it and wait until a bucket can be written and listed.

        After `stop` it's the same port, folder and content as before.
        """
        if self.port:
            self._launch()
            return self
        for left in reversed(range(_START_TRIES)):
            self.folder = Path(tempfile.mkdtemp(prefix=f"loradash-{self.program}-"))
            try:
                self.choose_ports()
                self.prepare()
                self._launch()
                return self
            except BaseException as error:
                self.close()
                if not left or not isinstance(error, ServerFailed):  # a port may just be taken
                    raise
        raise AssertionError

    def stop(self, grace_s: float = _STOP_S) -> None:
        """End it: SIGTERM, then SIGKILL. Its folder stays."""
        if not self._process:
            return
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> Self:
        """Stop and start it, on the same port and folder. SeaweedFS takes about 5 s."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze it: connections are accepted (by the kernel) and nothing is ever answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()  # nobody reads what it would still write
        if self.folder.parts:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder, self.port = Path(), 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def new_bucket(self) -> str:
        """Create an empty bucket that nobody else has; return its name."""
        self._buckets += 1
        name = f"test-{secrets.token_hex(4)}-{self._buckets}"
        self.client().create_bucket(Bucket=name)
        return name

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", ()):
                client.delete_object(Bucket=name, Key=entry["Key"])
        client.delete_bucket(Bucket=name)

    def client(self, endpoint_url: str | None = None, **options: Any) -> Any:
        """Return a boto3 client with the server's keys; through a proxy if its URL is given.

        ``options`` are those of `botocore.config.Config`.
        """
        return boto3.client(
            "s3",
            endpoint_url=endpoint_url or self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(**{"s3": {"addressing_style": "path"}, **options}),
        )

    def find_program(self) -> str:
        """Return the executable that was installed beside this Python."""
        program = shutil.which(self.program, path=sysconfig.get_path("scripts"))
        assert program, f"{self.program} isn't installed: pip install {self.package}"
        return program

    def _launch(self) -> None:
        assert not self._process, "the server is running already"
        command = [self.find_program(), *self.command()]
        if threading.current_thread() is threading.main_thread():
            # Linux takes the thread for the parent, so one that may end must not ask for it.
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        """Create a bucket, put into it and list it: only then everything has come up."""
        assert self._process
        deadline = time.monotonic() + self._ready_s
        client = self.client(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20)
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.program} ended with {self._process.poll()}", self)
            try:
                with contextlib.suppress(
                    client.exceptions.BucketAlreadyOwnedByYou,
                    client.exceptions.BucketAlreadyExists,
                ):
                    client.create_bucket(Bucket="ready-check")
                client.put_object(Bucket="ready-check", Key="ready", Body=b"ready")
                if client.list_objects_v2(Bucket="ready-check").get("KeyCount"):
                    return
                error: Exception | str = "what was put isn't listed"
            except (BotoCoreError, ClientError) as caught:
                error = caught
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self.program} isn't ready after {self._ready_s:.0f} s: {error}", self
                )
            time.sleep(0.1)


class ServerFailed(AssertionError):
    """A server that didn't start, with the end of its log."""

    def __init__(self, message: str, server: S3Server) -> None:
        log = server.log_path
        tail = log.read_text(errors="replace")[-3000:] if log.is_file() else "(no log)"
        super().__init__(f"{message}\nIts log ends with:\n{tail}")
