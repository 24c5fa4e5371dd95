"""A connection that cannot be held for ever, and of which there are only so many."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 128
HEAD_S, WHOLE_S = 10.0, 150.0  # for a request's head to come, and for all from there to the answer's last byte


class Connection(H11Protocol):
    """One request, and then it is closed; uvicorn itself waits for a first request without a limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
            return
        self._limits = [self.loop.call_later(HEAD_S, self._end_silent), self.loop.call_later(WHOLE_S, transport.abort)]

    def connection_lost(self, exc: Exception | None) -> None:
        for limit in getattr(self, "_limits", ()):
            limit.cancel()
        super().connection_lost(exc)

    def _end_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()
