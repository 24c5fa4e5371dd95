"""Where the daemon of a store is found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 100  # bytes of a socket's address; the kernel takes 107


def socket_file(store: Path, given: Path | None) -> Path:
    """The socket of a store's daemon, unless another path is given."""
    return given if given is not None else store / "daemon.sock"


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """A name of `path` that is short enough for a socket, within the block. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
