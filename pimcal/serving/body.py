"""A request's body, of a limited size and in a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from pimcal.daemon.requests import parse_request
from pimcal.errors import PimcalError, UsageError

LONGER, SHORTER = "pimcal.longer", "pimcal.shorter"  # in a request's scope: than its header says
LARGEST_ARRAY = 32 * 2**20  # bytes
LARGEST_COMMAND = 4096
MOST_AT_A_TIME = 2 * LARGEST_ARRAY  # of the arrays in work together
PATIENCE_S = 30.0
LINGER_S = 2.0  # for a body that nobody wants, since many clients listen only when they have sent all


async def read_body(request: Request, largest: int, take: Callable[[int], None] = lambda count: None) -> bytes:
    """`take(count)` is called for each part before it is kept.

    Raises HTTPException: 413 for a body of more than `largest` bytes, 408 for one that comes too slowly, 400 for one
    that is longer or shorter than its header says; and what `take` raises, a PimcalError.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _collect(request, largest, body, take)
            _check_length(request, len(body))
    except (HTTPException, PimcalError):
        body.clear()
        await discard(request.receive, expected="expect" in request.headers)
        raise
    except TimeoutError as error:
        raise HTTPException(408, f"the body has not come within {PATIENCE_S:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection was closed before the body had come") from error
    return bytes(body)


async def _collect(request: Request, largest: int, body: bytearray, take: Callable[[int], None]) -> None:
    too_large = HTTPException(413, f"a body may have at most {largest} bytes here")
    if int(request.headers.get("content-length", "0")) > largest:  # the server has made sure that it is a number
        raise too_large
    async for part in request.stream():
        if len(body) + len(part) > largest:
            raise too_large
        take(len(part))
        body += part


def _check_length(request: Request, length: int) -> None:
    said = request.headers.get("content-length")
    if said is not None and "transfer-encoding" in request.headers:  # others on the way may believe the other one
        raise HTTPException(400, "a body has Content-Length or Transfer-Encoding, not both")
    if request.scope.get(SHORTER) or (said is not None and int(said) != length):
        raise HTTPException(400, f"the body is cut off after {length} bytes; its header says more")
    if request.scope.get(LONGER):
        raise HTTPException(400, "more came than the body's header says")


async def discard(receive: Receive, *, expected: bool) -> None:
    """Let a body come, for a moment, and keep nothing; not where the client has yet to hear that it is `expected`."""
    if expected:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass


async def read_command(request: Request) -> dict[str, Any]:
    """A JSON object, {} for an empty body. Raises HTTPException as `read_body`, and 400 for anything else."""
    body = await read_body(request, LARGEST_COMMAND)
    try:
        return parse_request(body) if body else {}
    except UsageError as error:
        raise HTTPException(400, f"the body must be a JSON object, or empty: {error}") from error
