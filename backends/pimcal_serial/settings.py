"""The `device:` part of a profile whose backend is `serial`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pimcal.profile.ranges import Baud, Patience
from pimcal.tile_check import Tiles
from pimcal_serial.simulator.settings import BoardSettings

SIMULATED = "sim:"
REPLAY = "replay:"
_URLS = ("socket", "rfc2217")


def check_port(port: str) -> str:
    """Raise ValueError for what is no port."""
    if port == SIMULATED or any(port.startswith(kind) and port != kind for kind in ("usb:", REPLAY)):
        return port
    if "://" in port:
        _check_url(port)
    elif not port.startswith("/"):
        raise ValueError(
            f"port '{port}' is none of: a device path (/dev/...), usb:SERIAL, socket://host:port, "
            "rfc2217://host:port, sim:, replay:FILE"
        )
    return port


def _check_url(port: str) -> None:
    parts = urlsplit(port)
    try:
        number = parts.port
    except ValueError:
        number = None
    if parts.scheme not in _URLS or not parts.hostname or not number:
        raise ValueError(f"port '{port}' must be socket://host:port or rfc2217://host:port")


class SerialSettings(BaseModel):
    """Where the board is, and how patient to be with it.

    `port`: a device path, `usb:SERIAL` (the USB serial number, which stays the same wherever it is plugged in),
    `socket://host:port`, `rfc2217://host:port`, `sim:` for a virtual board within this process, or `replay:FILE` for
    what a board answered while FILE was recorded. `serial_number`: refuse any other board. `margin_s`: what host,
    adapter and network may add to the time that a request takes. `fast_baud`: both sides change from `baud` to this
    rate; where nothing gets through at it, they go on at `baud`. `trace`: a file that must not exist yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    # A correction belongs to a board, whichever way it is reached; its identity is checked beside the profile's hash.
    LINK: ClassVar = frozenset({"port", "baud", "fast_baud", "margin_s", "connect_s", "reconnect_s", "trace"})

    port: Annotated[str, AfterValidator(check_port)]
    baud: Baud = Field(115200, description="line rate in bit/s")
    fast_baud: Baud | None = Field(None, description="rate to change to once the board answers")
    serial_number: str | None = Field(None, min_length=1, description="of the board, as HELLO tells it")
    margin_s: Patience = Field(0.25, description="added to every time-out")
    connect_s: Patience = Field(3.0, description="how long the board may take to answer the first time")
    reconnect_s: Patience = Field(10.0, description="how long a lost board is waited for")
    trace: str | None = Field(None, min_length=1, description="record every byte to this new file")
    simulator: BoardSettings | None = Field(None, description="the virtual board, for port sim: alone")

    @model_validator(mode="after")
    def _record_only_what_is_no_recording(self) -> SerialSettings:
        if self.trace is not None and self.port.startswith(REPLAY):
            raise ValueError(f"trace has no effect with port {self.port}; that file is the trace")
        return self

    @model_validator(mode="after")
    def _simulate_only_what_is_simulated(self) -> SerialSettings:
        if self.simulator is not None and self.port != SIMULATED and not self.port.startswith(REPLAY):
            raise ValueError(f"simulator has no effect with port {self.port}; it is for port sim:")
        return self

    def misfits(self, tiles: Tiles) -> Iterator[tuple[str, str]]:
        """What of a profile's `tiles:` part the virtual board does not have."""
        if self.port != SIMULATED:
            return
        board = self.simulator or BoardSettings()
        limits = (
            ("count", tiles.count, board.tiles),
            ("rows", tiles.rows, board.rows),
            ("cols", tiles.cols, board.cols),
        )
        for key, asked, there in limits:
            if asked is not None and asked > there:
                yield f"tiles.{key}", f"the virtual board has {there} (got {asked}); see device.simulator"
