"""A connection that cannot be held for ever, and of which there are only so many."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pimcal.serving.body import LONGER, SHORTER

MOST = 128
_WHOLE = (h11.DONE, h11.MUST_CLOSE)  # the request has come to its end
HEAD_S, WHOLE_S = 10.0, 150.0  # for a request's head to come, and for all from there to the answer's last byte


class Connection(H11Protocol):
    """One request, and then it is closed; uvicorn itself waits for a first request without a limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.abort()
            return
        self._limits = [self.loop.call_later(HEAD_S, self._end_silent), self.loop.call_later(WHOLE_S, transport.abort)]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and self.conn.their_state in _WHOLE and self.conn.trailing_data[0].strip(b"\r\n"):
            self._tell(LONGER)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Who sends no more may still listen: a body that has been cut is answered as one that is too short."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        if self.cycle.more_body:
            self._tell(SHORTER)
            self.cycle.more_body = False
            self.cycle.message_event.set()
        return True

    def _tell(self, what: str) -> None:
        scope: Any = self.cycle.scope
        scope[what] = True

    def connection_lost(self, exc: Exception | None) -> None:
        for limit in getattr(self, "_limits", ()):
            limit.cancel()
        super().connection_lost(exc)

    def _end_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()
