"""All that talks to others obeys the environment's proxies, in the same way."""

import asyncio
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

from loradash.dev.webhooks import tell
from loradash.errors import InvalidRequest, LoradashError
from loradash.executors.runpod_client import RunpodClient
from loradash.resilience.circuit import Policy
from loradash.services.datasets.url_import import UrlImporter
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.store import S3Store

HOST = "somewhere.invalid"
PNG = b"\x89PNG\r\n\x1a\n rest"


class Proxy(ThreadingHTTPServer):
    """Answers all by itself, and notes what it was asked for; a tunnel leads to the answer, too."""

    def __init__(self):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.server.asked.append(f"{self.command} {self.path}")
                self.server.signs.append(self.headers.get("Proxy-Authorization"))
                self.send_response(self.server.status)
                if self.command != "CONNECT":
                    self.send_header("Content-Length", str(len(PNG)))
                self.end_headers()
                if self.command not in ("CONNECT", "HEAD"):
                    self.wfile.write(PNG)

            do_GET = do_PUT = do_POST = do_HEAD = do_CONNECT = do  # noqa: N815

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.signs, self.status = [], [], 200
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Proxy()
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    yield server
    server.shutdown()
    server.server_close()


def store():
    return S3Store(
        S3Config(
            "bucket", "id", "secret", endpoint_url=f"http://{HOST}", timeout_s=5,
            policy=Policy(retries=0),
        )
    )  # fmt: skip


def use(what, folder):
    """Ask HOST for something; whatever comes of it."""
    try:
        if what == "our requests to the store":
            with closing(store()) as one:
                next(iter(one.list()), None)
        elif what == "obstore":
            with closing(store()) as one:
                one._bucket.try_once("GET", "a", lambda: one._bucket.open_once("a"))
        elif what == "runpod":
            with closing(
                RunpodClient(
                    api_key="a" * 20, endpoint_id="x", base_url=f"http://{HOST}/v2", retries=0
                )
            ) as client:
                client.health()
        elif what == "import":
            UrlImporter(is_allowed=lambda _: True).fetch(f"http://{HOST}/a.png", folder / "a", 1000)
        else:
            asyncio.run(tell(f"http://{HOST}/told", {"id": "x"}, 0, lambda *_, **__: None))
    except LoradashError:
        return


CALLERS = ["our requests to the store", "obstore", "runpod", "import", "webhooks"]


@pytest.mark.parametrize("what", CALLERS)
def test_the_proxy_is_asked(proxy, monkeypatch, tmp_path, what):
    if what == "import":
        import_through(proxy, monkeypatch, tmp_path)
    else:
        use(what, tmp_path)
        assert proxy.asked
        assert all(f"http://{HOST}" in one for one in proxy.asked)


def import_through(proxy, monkeypatch, folder):
    """Its name is looked up here, and the proxy is asked for the address."""
    monkeypatch.setattr(
        "loradash.services.datasets.url_import._CheckedBackend._addresses",
        lambda *_: [ip_address("93.184.216.34")],
    )
    found = UrlImporter().fetch(f"http://{HOST}/a.png", folder / "a", 1000)
    assert found.path.read_bytes() == PNG
    assert proxy.asked == ["CONNECT 93.184.216.34:80", "GET /a.png"]


@pytest.mark.parametrize("what", CALLERS)
@pytest.mark.parametrize("but", [HOST, ".invalid", f"other,{HOST}", "*"])
def test_hosts_that_are_excepted_are_asked_themselves(proxy, monkeypatch, tmp_path, what, but):
    monkeypatch.setenv("NO_PROXY", but)
    monkeypatch.setenv("no_proxy", but)
    use(what, tmp_path)
    assert proxy.asked == []


def test_a_proxy_does_not_reach_what_an_import_may_not(proxy, tmp_path):
    for url in ("http://127.0.0.1/a.png", "http://169.254.169.254/a.png", "http://[::1]/a.png"):
        with pytest.raises(InvalidRequest, match="public internet"):
            UrlImporter().fetch(url, tmp_path / "a", 1000)
    assert proxy.asked == []


def test_a_proxy_that_refuses_is_told_with_what_it_must_do(proxy, monkeypatch, tmp_path):
    proxy.status = 407
    monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://me:p%40ss@"))
    with pytest.raises(InvalidRequest, match="answers 407") as caught:
        import_through(proxy, monkeypatch, tmp_path)
    assert "CONNECT" in caught.value.remedy
    assert proxy.signs == ["Basic bWU6cEBzcw=="]
