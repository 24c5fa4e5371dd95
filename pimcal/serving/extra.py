"""The libraries that serving needs, and that are imported only where it is asked for."""

from __future__ import annotations

from pimcal.errors import MissingExtraError


def check_extra() -> None:
    """Raises MissingExtraError where one is not installed."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("--http", (error.name or "uvicorn").partition(".")[0], "serve") from error
    del starlette, uvicorn
