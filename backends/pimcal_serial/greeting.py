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
    """What of a HELLO lies outside of the limits that docs/protocol.md lists."""
    least_payload = max(64 + max(info.rows, 4 * info.cols), 4 + 2 * info.tiles)
    limits = {
        "tiles": (1, 0xFFFF),
        "rows": (1, 0xFFFF),
        "cols": (1, 0xFFFF),
        "weight_bits": (2, 8),
        "input_bits": (2, 8),
        "output_bits": (2 if info.output_bits else 0, 24),
        "max_payload": (least_payload, 1 << 20),
        "window": (1, max(1, info.replay)),
        "replay": (1, 0xFFFE),
    }
    for name, (least, most) in limits.items():
        value = getattr(info, name)
        if not least <= value <= most:
            yield f"{name} is {value}, it must be {least} to {most}"
