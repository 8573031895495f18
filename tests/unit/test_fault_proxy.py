"""The proxy of the tests really does to a client what it says."""

import contextlib
import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.servers.fault_proxy import FaultProxy

BODY = bytes(range(256)) * 4000
ROOT = Path(__file__).parents[2]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with the same body, and remembers what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.heads.append((self.command, self.path, self.headers["Host"]))
        self.send_response(200)
        if self.path.endswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(BODY), 100_000):
                piece = BODY[start : start + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(BODY)

    def do_HEAD(self):
        self.do_GET()

    def do_PUT(self):
        self.server.heads.append((self.command, self.path, self.headers["Host"]))
        self.server.bodies.append(self._content())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def log_message(self, *_):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A connection that is reset is what is tested."""


@pytest.fixture
def server():
    server = QuietServer(("127.0.0.1", 0), Answers)
    server.heads, server.bodies = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(server):
    with FaultProxy(f"http://127.0.0.1:{server.server_port}", stall_s=0.5) as proxy:
        yield proxy


class Client(http.client.HTTPConnection):
    """Sends requests one after another over one connection."""

    def __init__(self, proxy, timeout=10):
        super().__init__("127.0.0.1", proxy.port, timeout=timeout)

    def ask(self, method="GET", path="/bucket/key", body=None, **options):
        self.request(method, path, body, **options)
        reply = self.getresponse()
        return reply.status, reply.read()


@pytest.fixture
def client(proxy):
    with contextlib.closing(Client(proxy)) as client:
        yield client


def test_requests_pass_as_they_are_over_one_connection(proxy, client, server):
    assert client.ask() == (200, BODY)
    assert client.ask("PUT", "/bucket/a%2Fb?x=1", BODY, headers={"Host": "s3.test"}) == (200, b"")
    assert client.ask("HEAD") == (200, b"")
    assert client.ask("GET", "/bucket/chunked") == (200, BODY)
    assert client.ask("PUT", body=iter([BODY, b"end"]), encode_chunked=True) == (200, b"")
    assert server.bodies == [BODY, BODY + b"end"]
    assert server.heads[1] == ("PUT", "/bucket/a%2Fb?x=1", "s3.test")
    assert [(seen.method, seen.status) for seen in proxy.requests] == [
        ("GET", 200), ("PUT", 200), ("HEAD", 200), ("GET", 200), ("PUT", 200),
    ]  # fmt: skip
    assert proxy.requests[1].sent_bytes == len(BODY)
    assert not proxy.faults


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_reads_as_s3_words_it_and_the_server_never_sees_the_request(
    proxy, client, server, status
):
    proxy.fail_next(str(status))
    told, body = client.ask("PUT", body=BODY)
    assert told == status
    assert b"<Error><Code>" in body
    assert not server.heads
    assert client.ask("PUT", body=BODY)[0] == 200
    assert server.bodies == [BODY]


@pytest.mark.parametrize(("fault", "status"), [("500_after", 500), ("error_in_200", 200)])
def test_an_error_may_be_told_of_what_was_done(proxy, client, server, fault, status):
    proxy.fail_next(fault)
    told, body = client.ask("PUT", body=BODY)
    assert told == status
    assert b"<Error><Code>" in body
    assert server.bodies == [BODY]


@pytest.mark.parametrize(
    ("fault", "is_done"), [("reset_before", False), ("reset_after", True), ("reset_middle", True)]
)
def test_a_connection_is_reset(proxy, client, server, fault, is_done):
    proxy.fail_next(fault)
    with pytest.raises(ConnectionResetError):
        client.ask("PUT", body=b"short")
    assert server.bodies == ([b"short"] if is_done else [])


def test_a_connection_is_reset_in_the_middle_of_a_download(proxy, client):
    proxy.fail_next("reset_middle")
    client.request("GET", "/bucket/key")
    reply = client.getresponse()
    assert reply.status == 200
    with pytest.raises(ConnectionResetError):
        while reply.read(1000):
            pass


def test_a_connection_is_reset_in_the_middle_of_an_upload(proxy, client, server):
    proxy.fail_next("reset_upload")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.ask("PUT", body=BODY)
    assert not server.bodies or len(server.bodies[0]) < len(BODY)
    assert proxy.requests[0].sent_bytes < len(BODY)


def test_a_request_is_never_answered(proxy, server):
    proxy.stall_s = 60
    proxy.fail_next("stall_before")
    with contextlib.closing(Client(proxy, timeout=0.3)) as client, pytest.raises(TimeoutError):
        client.ask()
    assert not server.heads


def test_a_reply_stops_in_its_middle_and_goes_on(proxy, client):
    proxy.stall_s = 1
    proxy.fail_next("stall_middle")
    began = time.monotonic()
    client.request("GET", "/bucket/key")
    reply = client.getresponse()
    first = reply.read(len(BODY) // 2)
    assert time.monotonic() - began < 1
    assert first + reply.read() == BODY
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("path", ["/bucket/key", "/bucket/chunked"])
def test_a_reply_ends_too_soon_without_a_reset(proxy, client, path):
    proxy.fail_next("truncate")
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.ask("GET", path)
    assert caught.value.partial == BODY[: len(caught.value.partial)]
    client.close()
    assert client.ask("GET", path) == (200, BODY)


def test_nobody_listens_for_a_while(proxy, client):
    client.ask()
    with proxy.down():
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            client.ask()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
    client.close()
    assert client.ask() == (200, BODY)


def test_a_reply_takes_a_round_trip_and_one_more_on_a_new_connection(proxy, client):
    proxy.delay_s = 0.05
    times = []
    for _ in range(3):
        began = time.monotonic()
        assert client.ask() == (200, BODY)
        times.append(time.monotonic() - began)
    assert times[0] >= 0.2
    assert 0.1 <= min(times[1:]) < times[0]


def test_faults_may_be_meant_for_some_requests_only(proxy, client):
    proxy.fail_next("503", 2, operations=["UploadPart"], containing="/bucket/a")
    part = "?partNumber=1&uploadId=x"
    assert client.ask("PUT", "/bucket/a", b"")[0] == 200
    assert client.ask("PUT", f"/bucket/b{part}", b"")[0] == 200
    assert [client.ask("PUT", f"/bucket/a{part}", b"")[0] for _ in range(3)] == [503, 503, 200]
    assert proxy.count("UploadPart") == 4
    assert proxy.count("UploadPart", fault="503") == proxy.faults["503"] == 2


def test_a_share_of_the_requests_fails_and_the_same_ones_each_time(server):
    def told():
        with (
            FaultProxy(f"http://127.0.0.1:{server.server_port}", seed=7) as proxy,
            contextlib.closing(Client(proxy)) as client,
        ):
            proxy.disturb(0.3, ["500", "503"], methods=["HEAD"])
            assert client.ask() == (200, BODY)
            result = [client.ask("HEAD")[0] for _ in range(100)]
            proxy.calm()
            assert client.ask("HEAD")[0] == 200
            assert proxy.count(fault="500") == result.count(500)
            return result

    first = told()
    assert first == told()
    assert 15 < 100 - first.count(200) < 45
    assert set(first) == {200, 500, 503}


def test_operations_are_told_apart(proxy, client):
    for method, path in [
        ("GET", "/"), ("GET", "/bucket?list-type=2&prefix=a"), ("GET", "/bucket/a/b"),
        ("HEAD", "/bucket/a"), ("PUT", "/bucket/a"), ("PUT", "/bucket/a?partNumber=1&uploadId=x"),
        ("GET", "/bucket/"),
    ]:  # fmt: skip
        client.ask(method, path, b"" if method == "PUT" else None)
    client.ask("GET", "/a/b", headers={"Host": "bucket.s3.test:9000"})
    assert proxy.operations == Counter(
        ListBuckets=1, ListObjectsV2=1, GetObject=2, HeadObject=1, PutObject=1, UploadPart=1,
        ListObjects=1,
    )  # fmt: skip


def test_the_proxy_also_runs_as_a_process(server):
    command = [sys.executable, "-m", "tests.servers.fault_proxy", "--upstream",
               f"http://127.0.0.1:{server.server_port}"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        process.stdin.write('{"fail_next": {"fault": "500"}}\n{"report": true}\n')
        assert process.stdout.readline() == '{"operations": {}, "faults": {}, "requests": []}\n'
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
            client.request("GET", "/bucket/key")
            assert client.getresponse().status == 500
        process.stdin.write('{"report": true}\n')
        assert '"faults": {"500": 1}' in process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0
