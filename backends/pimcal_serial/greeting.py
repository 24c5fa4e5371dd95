"""What the answer to HELLO, or none, tells of the other side."""

from __future__ import annotations

from collections.abc import Iterator

from pimcal.errors import DeviceUnavailableError
from pimcal_serial.frames import VERSION, Frame, FrameReader, PayloadError, Status
from pimcal_serial.messages import BoardInfo


def not_greeted(name: str, heard: int, reader: FrameReader) -> DeviceUnavailableError:
    """Why nobody has answered HELLO, from how many bytes were heard and what the reader made of them."""
    if not heard:
        return DeviceUnavailableError(
            f"{name} is silent: nothing came back; check its power, the cable, and the baud rate"
        )
    if reader.received:
        return DeviceUnavailableError(
            f"{name} sends frames but does not answer HELLO; restart the board (a line that "
            "echoes does that, too: check where the port leads)"
        )
    return DeviceUnavailableError(
        f"{name} is not a PIM board, or has another baud rate: {heard} bytes came back, none of them a frame"
    )


def board_info(name: str, frame: Frame) -> BoardInfo:
    """What HELLO's answer says. Raises DeviceUnavailableError: another version, or what cannot be."""
    if frame.version != VERSION or frame.status == Status.VERSION:
        raise DeviceUnavailableError(
            f"{name} speaks version {frame.version} of the protocol, this is version {VERSION}; "
            "update the older of the two"
        )
    try:
        info = BoardInfo.decode(frame.payload)
    except PayloadError as error:
        raise DeviceUnavailableError(f"{name} sends a HELLO that cannot be read: {error}") from error
    wrong = "; ".join(_nonsense(info))
    if frame.status or wrong:
        raise DeviceUnavailableError(
            f"{name} sends a HELLO that makes no sense ({wrong or f'status {frame.status}'}); update its firmware"
        )
    return info


def _nonsense(info: BoardInfo) -> Iterator[str]:
    """What of a HELLO cannot be."""
    for name in ("tiles", "rows", "cols", "window"):
        if not getattr(info, name):
            yield f"{name} is 0"
    for name in ("weight_bits", "input_bits"):
        if not 2 <= getattr(info, name) <= 8:
            yield f"{name} is {getattr(info, name)}"
    if info.max_payload < 64 + max(info.rows, 4 * info.cols):
        yield f"max_payload is {info.max_payload}"
    if info.replay < info.window:
        yield f"replay {info.replay} is less than window {info.window}"
