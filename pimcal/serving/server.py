"""The thread that serves HTTP, beside the one that owns the device."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pimcal.serving.app import Daemon, make_app
from pimcal.serving.binding import Binding
from pimcal.serving.connection import Connection
from pimcal.serving.guard import Guard

logger = logging.getLogger(__name__)

DRAIN_S = 10.0  # for requests that are in work when the daemon is to stop
CLOSE_S = 5  # and for their answers to be read


class Server:
    """Serves from `start` to `close`."""

    def __init__(self, daemon: Daemon, binding: Binding, listener: socket.socket) -> None:
        self._daemon, self._listener = daemon, listener
        self._server = uvicorn.Server(_config(Guard(make_app(daemon), binding)))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self, then: Callable[[], None]) -> None:
        """Take no more requests for inference; call `then()`, in another thread, when those in work are answered."""
        try:
            self._loop.call_soon_threadsafe(self._begin_to_drain, then)
        except RuntimeError:  # it serves no more
            then()

    def _begin_to_drain(self, then: Callable[[], None]) -> None:
        self._draining = self._loop.create_task(self._drain(then))

    async def _drain(self, then: Callable[[], None]) -> None:
        try:
            await self._daemon.inference.drain(DRAIN_S)
        finally:
            then()

    def close(self) -> None:
        """Send what is answered, and end."""
        self._server.should_exit = True
        self._thread.join(2 * CLOSE_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._server.serve([self._listener]))
        except Exception as error:
            logger.error("HTTP is not served any more: %s: %s", type(error).__name__, error)
        finally:
            self._loop.close()


@contextmanager
def serving(daemon: Daemon, binding: Binding, listener: socket.socket) -> Iterator[Server]:
    """Serve for the length of a block."""
    server = Server(daemon, binding, listener)
    server.start()
    try:
        yield server
    finally:
        server.close()


def _config(app: ASGIApp) -> uvicorn.Config:
    """Without what a service behind nobody's proxy has no need for; `connection: close` is what `Connection` needs."""
    return uvicorn.Config(
        app, http=Connection, ws="none", loop="asyncio", lifespan="off", interface="asgi3", log_config=None,
        log_level="error", access_log=False, proxy_headers=False, server_header=False,
        headers=[("Connection", "close"), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")],
        timeout_graceful_shutdown=CLOSE_S,
    )  # fmt: skip
