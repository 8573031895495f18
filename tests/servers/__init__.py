"""Real S3 servers and a network that misbehaves, for tests and benchmarks.

`seaweedfs.SeaweedServer` is a complete S3 server. `juicefs.JuiceServer` is real too and checks
signatures, but silently ignores conditions (``If-None-Match``, ``If-Match``): the dangerous kind.
Both are `server.S3Server`: `new_bucket`, `client`, `pause`, `resume`, `stop`, `start`, `restart`.
Tests get them as the fixtures ``seaweedfs`` and ``juicefs`` (`tests/conftest.py`), one each per
worker of pytest-xdist, started by the first test that asks. A test that pauses or stops one
must bring it back, so better have a server of its own: ``with SeaweedServer() as server``.

`fault_proxy.FaultProxy` stands between a client and any HTTP server, and does what networks do:
delays, errors, resets, stalls, replies that end too soon, nobody there. It remembers every request.

    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        proxy.fail_next("reset_after", operations=["PutObject"])
        ...  # a client of proxy.url
        assert proxy.count("PutObject") == 2
"""
