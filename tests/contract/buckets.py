"""Stores in fresh buckets of the servers that the tests start."""

from loradash.resilience.circuit import Policy
from loradash.storage.s3.config import S3Config

QUICK = Policy(
    retries=3, deadline_s=60, first_wait_s=0.01, longest_wait_s=0.1, failing_s_to_open=0, open_s=1
)


def config_of(server, *, bucket="", endpoint_url="", **options):
    """How to reach a new bucket of a server, or this one, perhaps through a proxy."""
    return S3Config(
        **{
            "bucket": bucket or server.new_bucket(),
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "endpoint_url": endpoint_url or server.endpoint_url,
            "policy": QUICK,
            "timeout_s": 20,
            **options,
        }
    )
