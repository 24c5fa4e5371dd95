"""Consistent overhead byte stuffing (Cheshire and Baker, 1999), without the delimiter."""

from __future__ import annotations

import numpy as np

_FULL = 254  # bytes in the longest piece; its code, 255, implies no zero


def encode(data: bytes) -> bytes:
    """`data` without zero bytes; at most 1 + len(data) // 254 bytes longer."""
    ended = np.frombuffer(data + b"\0", np.uint8)
    ends = np.flatnonzero(ended == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts
    if lengths.max() >= _FULL:
        return _encode_long(ended, starts, lengths)
    # Each zero makes room for the code of the piece behind it.
    encoded = np.concatenate((ended[-1:], ended[:-1]))
    encoded[starts] = lengths + 1
    return encoded.tobytes()


def _encode_long(ended: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> bytes:
    """As `encode`, where some pieces are longer than one code can tell."""
    pieces = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        end = start + length
        while end - start >= _FULL:
            pieces += [b"\xff", ended[start : start + _FULL].tobytes()]
            start += _FULL
        pieces += [bytes([end - start + 1]), ended[start:end].tobytes()]
    if len(pieces) > 2 and not pieces[-1] and pieces[-4] == b"\xff":
        del pieces[-2:]  # a full last piece implies nothing that would have to follow
    return b"".join(pieces)


def decode(data: bytes) -> bytes:
    """What `encode` was given. Raises ValueError where `data` is empty, has a zero, or ends inside a piece."""
    if not data or 0 in data:
        raise ValueError("COBS data is empty or has a zero byte")
    decoded = bytearray(data)
    surplus = [0]  # codes that stand for no zero: the first, and those behind full pieces
    position, size = 0, len(data)
    while position < size:
        code = data[position]
        decoded[position] = 0
        position += code
        if code > _FULL:
            surplus.append(position)
    if position != size:
        raise ValueError("COBS data ends inside a piece")
    for position in reversed(surplus):
        del decoded[position : position + 1]
    return bytes(decoded)
