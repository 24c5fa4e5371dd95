"""Stands before the pages: who may not is turned away, whatever the body is."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pimcal.serving.access import refused
from pimcal.serving.binding import Binding
from pimcal.serving.body import discard

_REFUSALS = {
    401: JSONResponse({"error": "not allowed"}, 401, {"WWW-Authenticate": "Bearer"}),
    403: JSONResponse({"error": "this interface is for programs, not for web pages"}, 403),
}


class Guard:
    """`app` for those who may use it."""

    def __init__(self, app: ASGIApp, binding: Binding) -> None:
        self._app, self._binding = app, binding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        code = refused(self._binding, scope["method"], scope["path"], headers)
        if code is None:
            await self._app(scope, receive, send)
        else:
            await discard(receive, expected="expect" in headers)
            await _REFUSALS[code](scope, receive, send)
