"""Connections are bounded in number and in the time that each may take."""

import asyncio
import contextlib
import re
import resource
import socket
import subprocess
import sys
import threading

import pytest
import uvicorn

from loradash.api.connections import ConnectionLimits, bounded_protocol, limits_for
from loradash.listening import listen

LONG_S = 60.0
LARGE_IS_OVER = threading.Event()
_HEAD = re.compile(rb"content-length: ([0-9])\r\n(?:.*\r\n)?\r\n", re.DOTALL)
QUICK = ConnectionLimits(
    connections=100, headers_s=LONG_S, body_s=LONG_S, reply_s=LONG_S, look_s=0.02
)


async def app(scope, receive, send):
    """Answer with the body's size; below /large with much more than sockets hold."""
    assert scope["type"] == "http"
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    body = bytes(30_000_000) if scope["path"] == "/large" else str(size).encode()
    length = str(len(body)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    for at in range(0, len(body), 100_000):
        more = at + 100_000 < len(body)
        await send(
            {"type": "http.response.body", "body": body[at : at + 100_000], "more_body": more}
        )
    if scope["path"] == "/large":
        LARGE_IS_OVER.set()


@contextlib.contextmanager
def serving(limits):
    listener = listen("127.0.0.1", 0)
    listener.listen(100)  # clients may come before the server is up
    config = uvicorn.Config(
        app, http=bounded_protocol(limits), ws="none", lifespan="off", log_config=None,
        access_log=False, timeout_graceful_shutdown=1, timeout_keep_alive=60,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def connected(address, *, buffer_bytes=0):
    client = socket.socket()
    if buffer_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    client.settimeout(60)  # what never comes fails the test
    client.connect(address)
    return client


def all_of(client):
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


def asked(client, path="/"):
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return reply_of(client)


def reply_of(client):
    """A whole reply of less than ten bytes."""
    received = b""
    while not (found := _HEAD.search(received)):
        received += (piece := client.recv(65536))
        assert piece, received
    while len(received) < found.end() + int(found[1]):
        received += client.recv(65536)
    return received


def test_a_connection_that_sends_nothing_is_closed():
    with serving(QUICK._replace(headers_s=0.1)) as address, connected(address) as client:
        assert all_of(client) == b""


def test_headers_that_never_end_are_answered_and_closed():
    with serving(QUICK._replace(headers_s=0.1)) as address, connected(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ")
        assert all_of(client).startswith(b"HTTP/1.1 408 ")


def test_headers_of_a_second_request_have_the_same_time():
    with serving(QUICK._replace(headers_s=0.3)) as address, connected(address) as client:
        assert asked(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in all_of(client)


def test_a_body_that_stands_still_is_answered_and_closed():
    with serving(QUICK._replace(body_s=0.1)) as address, connected(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n12345")
        reply = all_of(client)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b'"message": "the request\'s body came too slowly' in reply


def test_a_body_of_one_byte_now_and_then_is_ended_too():
    with serving(QUICK._replace(body_s=0.2)) as address, connected(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        client.settimeout(0.01)
        for _ in range(50_000):  # a second at least, a few minutes at most
            try:
                client.sendall(b"x")
                assert client.recv(100).startswith(b"HTTP/1.1 408 ")
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("never ended")


def test_a_body_that_keeps_coming_may_take_as_long_as_it_likes():
    limits = QUICK._replace(body_s=1.0, body_bytes=1)
    with serving(limits) as address, connected(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n")
        pause = threading.Event()
        for _ in range(30):
            client.sendall(b"x")
            pause.wait(0.05)
        assert reply_of(client).endswith(b"\r\n\r\n30")


def test_a_client_that_does_not_take_its_reply_is_closed():
    with (
        serving(QUICK._replace(reply_s=0.2)) as address,
        connected(address, buffer_bytes=4096) as client,
    ):
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert LARGE_IS_OVER.wait(60)  # nobody reads it, so the connection must be gone
        assert len(all_of(client)) < 30_000_000


def test_the_connection_that_is_idle_for_longest_gives_way():
    with serving(QUICK._replace(connections=3)) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(address)) for _ in range(3)]
        for client in clients:
            assert asked(client).startswith(b"HTTP/1.1 200")
        assert asked(clients[0]).startswith(b"HTTP/1.1 200")  # now the second is the oldest
        newest = stack.enter_context(connected(address))
        assert asked(newest).startswith(b"HTTP/1.1 200")
        assert all_of(clients[1]) == b""
        assert asked(clients[0]).startswith(b"HTTP/1.1 200")
        assert asked(clients[2]).startswith(b"HTTP/1.1 200")


def test_where_all_are_busy_a_new_one_is_told_so():
    with serving(QUICK._replace(connections=1)) as address, connected(address) as busy:
        busy.sendall(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        assert busy.recv(100).startswith(b"HTTP/1.1 100")  # so the request is taken up
        with connected(address) as late:
            assert all_of(late).startswith(b"HTTP/1.1 503 ")
        busy.sendall(b"ab")
        assert reply_of(busy).endswith(b"\r\n\r\n2")


def test_ten_times_as_many_connections_as_there_may_be():
    with serving(QUICK._replace(connections=20)) as address, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connected(address))
        with connected(address) as client:
            assert asked(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("files", [64, 256, 1024, 4096, 65536])
def test_limits_leave_half_of_the_files_to_others(files):
    limits = limits_for(files)
    assert limits.connections >= 8
    assert limits.connections + 4 * limits.accepted_at_once <= files // 2


def test_the_soft_limit_of_files_is_raised_to_the_hard_one():
    program = (
        "import resource; from loradash.api.connections import raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))\n"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "300 (300, 300)"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)
