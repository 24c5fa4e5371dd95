"""What a session is asked, and how an answer that is none is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pimcal.errors import DeviceUnavailableError, UsageError
from pimcal_serial.frames import NO_TILE, MessageType, Status

_MEANINGS: dict[int, str] = {
    Status.UNKNOWN_TYPE: "it cannot do that",
    Status.BAD_LENGTH: "the request is not as long as it should be",
    Status.OUT_OF_RANGE: "there is no such tile, row, column or rate",
    Status.BAD_VALUE: "a value is outside of the board's bits",
    Status.NOT_PROGRAMMED: "the tile holds no weights; program it first",
}


class BoardRestartedError(DeviceUnavailableError):
    """The board has started anew, so that its weights are gone; requests without an answer yet were not repeated."""


class RefusedError(UsageError):
    """The board has answered with a status other than OK."""

    def __init__(self, request: Request, status: int) -> None:
        name = Status(status).name if status in set(Status) else f"status {status}"
        where = "" if request.tile == NO_TILE else f" on tile {request.tile}"
        super().__init__(f"the board refused {request.kind.name}{where}: {name} ({_MEANINGS.get(status, 'unknown')})")
        self.status = status


def _at_once() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask; `answer_bytes` is how long the answer's payload will be, for time-outs.

    `ready`: whether it may be sent, and what comes behind it; asked until it says yes. What gets lost is repeated later
    than what was sent behind it, so that a request has to wait for the answers to those that it depends on.
    """

    kind: MessageType
    payload: bytes = b""
    tile: int = NO_TILE
    answer_bytes: int = 0
    ready: Callable[[], bool] = _at_once
