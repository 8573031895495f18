"""Real S3 servers and a network that misbehaves, for tests and benchmarks.

`SeaweedServer` is a complete S3 server. `JuiceServer` is real too and checks signatures, but
silently ignores conditions (``If-None-Match``, ``If-Match``): the dangerous kind. Both are
`S3Server`: `new_bucket`, `client`, `pause`, `resume`, `stop`, `start`, `restart`. Tests get them
as the fixtures ``seaweedfs`` and ``juicefs`` (`tests/conftest.py`), one each per worker of
pytest-xdist, started by the first test that asks. A test that stops one must start it again, so
better have a server of its own: ``with SeaweedServer() as server``.

`FaultProxy` stands between a client and any HTTP server, and does what networks do: delays,
errors, resets, stalls, replies that end too soon, nobody there. It remembers every request.

    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        proxy.fail_next("reset_after", operations=["PutObject"])
        ...  # a client of proxy.url
        assert proxy.count("PutObject") == 2
"""

from tests.servers.fault_proxy import FaultProxy, Seen
from tests.servers.juicefs import JuiceServer
from tests.servers.seaweedfs import SeaweedServer
from tests.servers.server import S3Server

__all__ = ["FaultProxy", "JuiceServer", "S3Server", "SeaweedServer", "Seen"]
