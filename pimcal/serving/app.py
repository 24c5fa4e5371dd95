"""The HTTP interface itself: which address answers what."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pimcal.daemon.requests import check_request
from pimcal.daemon.status import Status
from pimcal.errors import DataError, DeviceBusyError, DeviceUnavailableError, PimcalError, StorageError, UsageError
from pimcal.serving.body import LARGEST_ARRAY, MOST_AT_A_TIME, read_body, read_command
from pimcal.serving.exposition import CONTENT_TYPE
from pimcal.serving.inference import Inference
from pimcal.serving.measured import Measured, Requests
from pimcal.serving.npy import read_npy, write_npy
from pimcal.serving.room import Room
from pimcal.serving.told import without_folders
from pimcal.store import Store
from pimcal.store.clock import iso

logger = logging.getLogger(__name__)

SILENT_S = 300.0  # without any progress of the thread that owns the device it is taken for stuck
MOST_EVENTS = 1000
RETRY_AFTER = {503: "10", 429: "1"}  # seconds
_CODES: tuple[tuple[type[PimcalError], int], ...] = (
    (DeviceBusyError, 429), (DeviceUnavailableError, 503), (StorageError, 503), (DataError, 400), (UsageError, 400),
)  # fmt: skip


class Owner(Protocol):
    """Who owns the device, as the interface sees it: `pimcal.daemon.overview.Overview`."""

    @property
    def status(self) -> Status: ...
    def silent_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Daemon:
    """What the interface is made of. `ask(request)`: what the daemon's socket answers; `open_store()`: to read."""

    owner: Owner
    inference: Inference
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    open_store: Callable[[], Store]
    now: Callable[[], float]


class Pages:
    """One method an address."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._requests, self._room = Requests(), Room(MOST_AT_A_TIME)
        self._measured = Measured(lambda: daemon.owner.status, daemon.open_store, daemon.now)

    async def healthz(self, request: Request) -> Response:
        """Whether the process works: its thread for the device is there, and makes progress or has nothing to do."""
        silent_s = self._daemon.owner.silent_s()
        well = self._daemon.owner.status.state != "stopped" and silent_s < SILENT_S
        return JSONResponse({"alive": well, "worker_silent_seconds": round(silent_s, 3)}, 200 if well else 503)

    async def readyz(self, request: Request) -> Response:
        """Whether a request for inference can be answered with a calibration in force."""
        status = self._daemon.owner.status
        if status.ready and not self._daemon.inference.closed:
            return JSONResponse({"ready": True})
        return failure(503, "the daemon is stopping" if self._daemon.inference.closed else _unready(status))

    async def metrics(self, request: Request) -> Response:
        daemon = self._daemon
        arguments = self._requests, daemon.inference.mvms, daemon.owner.silent_s()
        return PlainTextResponse(await run_in_threadpool(self._measured.text, *arguments), media_type=CONTENT_TYPE)

    async def status(self, request: Request) -> Response:
        return JSONResponse(without_folders(await run_in_threadpool(self._daemon.ask, {"do": "status"})))

    async def history(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "50")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= MOST_EVENTS):
            raise HTTPException(400, f"limit must be a whole number from 1 to {MOST_EVENTS}")
        return JSONResponse({"events": without_folders(await run_in_threadpool(self._events, int(limit)))})

    def _events(self, limit: int) -> list[dict[str, Any]]:
        with self._daemon.open_store() as store:
            return [{**asdict(event), "at": iso(event.at)} for event in store.journal.history(limit=limit)]

    async def infer(self, request: Request) -> Response:
        """A .npy file for another."""
        start_s = time.perf_counter()
        response = await answered(request, self._infer)
        self._requests.answered(response.status_code, time.perf_counter() - start_s)
        return response

    async def _infer(self, request: Request) -> Response:
        inference = self._daemon.inference
        inference.enter()
        try:
            with self._room.share() as take:
                array = read_npy(await read_body(request, LARGEST_ARRAY, take))
                return Response(write_npy(await inference.answer(array)), media_type="application/octet-stream")
        finally:
            inference.leave()

    def told(self, what: str) -> Page:
        """A page that tells the daemon to do `what`, with the body's fields."""

        async def tell(request: Request) -> Response:
            command = await read_command(request)
            check_request(what, command)
            return JSONResponse(await run_in_threadpool(self._daemon.ask, {**command, "do": what}))

        return tell


Page = Callable[[Request], Awaitable[Response]]


def make_app(daemon: Daemon) -> Starlette:
    """Without any check of who asks: see `pimcal.serving.guard`."""
    pages = Pages(daemon)
    looking = [
        ("/healthz", pages.healthz), ("/readyz", pages.readyz), ("/metrics", pages.metrics),
        ("/api/status", pages.status), ("/api/history", pages.history),
    ]  # fmt: skip
    changing = [(f"/api/{what}", pages.told(what)) for what in ("run-now", "pause", "resume", "release")]
    routes = [Route(path, _safe(page), methods=["GET"]) for path, page in looking]
    routes += [Route(path, _safe(page), methods=["POST"]) for path, page in (("/infer", pages.infer), *changing)]
    return Starlette(routes=routes, exception_handlers={HTTPException: _of_http})


def _safe(page: Page) -> Page:
    async def safe(request: Request) -> Response:
        return await answered(request, page)

    return safe


async def answered(request: Request, page: Page) -> Response:
    """What a page gives, or what its error becomes: one sentence, and nothing of the inside."""
    try:
        return await page(request)
    except HTTPException as error:
        return failure(error.status_code, error.detail)
    except PimcalError as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
        return failure(code, str(error))
    except Exception as error:
        logger.error("%s: %s: %s", request.url.path, type(error).__name__, error)
        return failure(500, "an error inside; the daemon's log tells more")


def failure(code: int, message: str) -> Response:
    headers = {"Retry-After": RETRY_AFTER[code]} if code in RETRY_AFTER else None
    return JSONResponse({"error": without_folders(message)}, code, headers)


async def _of_http(request: Request, error: Exception) -> Response:
    """No such address, or not this way."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _unready(status: Status) -> str:
    if status.state in ("waiting", "working", "paused"):
        return "no calibration is in force yet"
    return {
        "starting": "the device is not open yet",
        "released": "the device is released",
        "lost": "the device is lost, and looked for",
    }.get(status.state, "the daemon has stopped")
