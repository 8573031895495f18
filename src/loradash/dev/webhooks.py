"""Telling a client's URL how a job has ended."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2

_TRIES = 3
_TIMEOUT_S = 10.0


async def tell(
    url: str, document: dict[str, Any], pause_s: float, note: Callable[..., None]
) -> bool:
    """Post until the URL answers 200, three times at most; return whether it did."""
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as client:
        for number in range(1, _TRIES + 1):
            if number > 1:
                await asyncio.sleep(pause_s)
            try:
                answer = str((await client.post(url, json=document)).status_code)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                answer = type(error).__name__
            note("webhook", job=document["id"], attempt=number, answer=answer)
            if answer == "200":
                return True
    return False
