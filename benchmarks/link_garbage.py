"""Bursts of garbage between the frames of a stream of products: what is lost, what is repeated, what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from link_peers import Peer, native, pimsim
from link_products import Random, wrong_answers

from pimcal_serial.frames import MessageType
from pimcal_serial.messages import Stats
from pimcal_serial.requests import Request
from pimcal_serial.session import Session, Timing
from pimcal_serial.transport import Transport, open_port

BAUD = 115_200
LONGEST = 20_000  # bytes of a burst
BATCH = 250  # products between looks at what is left
PEERS: dict[str, Peer] = {"native firmware": native, "pimsim": pimsim}
COMMAND_MS = 10
SHARE = 0.1  # of the frames that a burst without a zero at its end comes before: such a burst destroys the frame


class Noise:
    """Puts bursts before frames of one direction; `ended`: with a zero behind, so that the frame is whole."""

    def __init__(self, bursts: int, ended: bool, seed: int) -> None:
        self.left, self.bytes = bursts, 0
        self._ended, self._generator, self._between = ended, np.random.default_rng(seed), True

    def mix(self, data: bytes) -> bytes:
        mixed = bytearray()
        for part in re.findall(rb"[^\0]*\0|[^\0]+", data):
            if self._between and part != b"\0":
                mixed += self._burst(part)
            mixed += part
            self._between = part.endswith(b"\0")
        return bytes(mixed)

    def _burst(self, frame: bytes) -> bytes:
        """Random bytes, or the beginning of a frame, or nothing."""
        generator = self._generator
        if not self.left or not (self._ended or generator.random() < SHARE):
            return b""
        self.left -= 1
        if generator.random() < 0.25:
            burst = frame[: generator.integers(1, len(frame) + 1)].rstrip(b"\0")[:-1] or b"\1"
        else:
            burst = generator.bytes(round(LONGEST ** generator.random()))
        self.bytes += len(burst)
        return burst + b"\0" if self._ended else burst


class Noisy:
    """A transport with noise in both directions."""

    def __init__(self, inner: Transport, to_board: Noise, to_host: Noise) -> None:
        self._inner, self._to_board, self._to_host, self._waiting = inner, to_board, to_host, bytearray()

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        self._waiting += self._to_board.mix(bytes(outgoing))
        taken, received = self._inner.exchange(self._waiting, timeout_s)
        del self._waiting[:taken]
        return len(outgoing), self._to_host.mix(received)

    def set_baud(self, baud: int) -> None:
        self._inner.set_baud(baud)

    def close(self) -> None:
        self._inner.close()


@contextmanager
def noisy(port: str, to_board: Noise, to_host: Noise, margin_s: float) -> Iterator[Session]:
    session = Session(lambda: Noisy(open_port(port, BAUD, margin_s), to_board, to_host), Timing(margin_s=margin_s))
    try:
        yield session
    finally:
        session.close()


def bursts_at(peer: Peer, bursts: int, to_board: bool, ended: bool) -> dict[str, Any]:
    noise, silence = Noise(bursts, ended, seed=int(to_board)), Noise(0, True, 0)
    margin_s = 2.0 if ended else 0.02  # nothing is to be repeated behind a zero, and much is without
    directions = (noise, silence) if to_board else (silence, noise)
    start = time.perf_counter()
    with peer(0, COMMAND_MS) as port, noisy(port, *directions, margin_s) as session:
        products, wrong = products_until_quiet(session, noise)
        stats = Stats.decode(session.request(Request(MessageType.STATS)))
        return {
            "bursts": bursts - noise.left,
            "bytes": noise.bytes,
            "products": products,
            "wrong": wrong,
            "frames_dropped": stats.dropped if to_board else session.frames_dropped,
            "repeats": session.counters.repeats,
            "seconds": round(time.perf_counter() - start, 1),
            "reached": not wrong and (not ended or not session.counters.repeats),
        }


def products_until_quiet(session: Session, noise: Noise) -> tuple[int, int]:
    """Products until all bursts have come, and some behind them; how many there were, and how many were wrong."""
    drawn, done, wrong, quiet = Random(seed=2, bits=0), 0, 0, False
    while not quiet:
        quiet = not noise.left
        wrong += wrong_answers(session, drawn, BATCH)
        done += BATCH
    return done, wrong


def garbage(bursts: int) -> dict[str, Any]:
    """Half of the bursts in each direction; a fifth has no zero behind, so that the next frame is lost with it."""
    results = {
        name: {
            f"{'to the board' if to_board else 'to the host'}, {'a zero behind' if ended else 'no zero behind'}": (
                bursts_at(peer, round(bursts * (0.4 if ended else 0.1)), to_board, ended)
            )
            for to_board in (True, False)
            for ended in (True, False)
        }
        for name, peer in PEERS.items()
    }
    return results | {"reached": all(case["reached"] for cases in results.values() for case in cases.values())}
