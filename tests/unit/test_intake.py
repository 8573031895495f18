"""How much of requests' bodies is in memory at a time, and what is parsed of them."""

import asyncio
import json
from concurrent.futures import Future

import pytest

from loradash.api import intake as intake_module
from loradash.api.intake import Intake, parsed
from loradash.errors import InvalidRequest, ServerBusy

LARGE = 100_000


class Request:
    def __init__(self, length):
        self.headers = {} if length is None else {"content-length": str(length)}


def test_requests_that_find_no_room_wait_in_order():
    async def scene():
        intake = Intake(LARGE, room_bytes=2 * LARGE)
        first, second = [await intake.reserve(Request(LARGE)) for _ in range(2)]
        order = []

        async def ask(name, length):
            room = await intake.reserve(Request(length))
            order.append(name)
            return room

        waiting = [asyncio.create_task(ask(name, LARGE)) for name in ("third", "fourth")]
        small = await ask("small", 1000)
        await asyncio.sleep(0)
        assert order == ["small"]
        first.release()
        first.release()  # changes nothing
        third = await waiting[0]
        assert order == ["small", "third"]
        second.release()
        fourth = await waiting[1]
        for room in (third, fourth, small):
            room.release()
        assert intake._free_bytes == 2 * LARGE

    asyncio.run(scene())


def test_who_waits_too_long_is_told_that_the_server_is_busy_and_takes_no_room():
    async def scene():
        intake = Intake(LARGE, room_bytes=LARGE, wait_s=0.01)
        held = await intake.reserve(Request(None))  # its length is unknown: the largest
        with pytest.raises(ServerBusy, match="busy"):
            await intake.reserve(Request(LARGE))
        held.release()
        assert intake._free_bytes == LARGE
        (await intake.reserve(Request(LARGE))).release()

    asyncio.run(scene())


def test_a_client_that_leaves_while_it_waits_takes_no_room():
    async def scene():
        intake = Intake(LARGE, room_bytes=LARGE)
        held = await intake.reserve(Request(LARGE))
        waiting = asyncio.create_task(intake.reserve(Request(LARGE)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        held.release()
        assert intake._free_bytes == LARGE

    asyncio.run(scene())


def test_room_is_given_back_from_another_thread_when_a_job_ends():
    async def scene():
        intake = Intake(LARGE, room_bytes=LARGE)
        room = await intake.reserve(Request(LARGE))
        job = Future()
        job.add_done_callback(room.release)
        waiting = asyncio.create_task(intake.reserve(Request(LARGE)))
        await asyncio.to_thread(job.set_result, None)
        await asyncio.wait_for(waiting, 30)

    asyncio.run(scene())


@pytest.mark.parametrize("body", [b"[" + b"[]," * 200_000, b"{" * 300_000, b"," * 300_000])
def test_too_many_values_are_refused_before_they_are_parsed(body, monkeypatch):
    monkeypatch.setattr(intake_module, "from_json", lambda _body: pytest.fail("was parsed"))
    with pytest.raises(InvalidRequest, match="values"):
        parsed(body)


def test_a_long_text_is_one_value():
    body = json.dumps({"content": "A" * 10_000_000}).encode()
    assert len(parsed(body)["content"]) == 10_000_000


@pytest.mark.parametrize(("depth", "is_read"), [(60, True), (64, True), (65, False), (150, False)])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(begin, end, depth, is_read):
    inner = begin.replace(":", ":1") if begin == '{"a":' else begin
    body = (begin * (depth - 1) + inner + end * depth).encode()
    if is_read:
        assert parsed(body)
    else:
        with pytest.raises(InvalidRequest, match="deep"):
            parsed(body)
