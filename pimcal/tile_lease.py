"""Which tiles of an open device belong to which network."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Self


class TileLeases:
    """The tiles of one device, given to networks as they are asked for; `count` is None without a limit."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self._numbers = itertools.count()
        self._held: dict[int, list[int]] = {}  # by owner

    def lease(self) -> TileLease:
        """A place for one more network, which holds no tile yet."""
        lease = TileLease(self, next(self._numbers))
        self._held[lease.owner] = []
        # A lease ends with the last copy of its network; the network may also end it.
        weakref.finalize(lease, self._held.pop, lease.owner, None)
        return lease

    def held_by_others(self, owner: int) -> int:
        """How many tiles belong to other networks that are still in use."""
        return sum(len(tiles) for who, tiles in self._held.items() if who != owner)

    def held(self, owner: int) -> list[int]:
        return self._held.get(owner, [])

    def take(self, owner: int) -> int:
        """One more tile: the first that is nobody's. Raises IndexError if there is none."""
        taken = {tile for tiles in self._held.values() for tile in tiles}
        free = next(tile for tile in itertools.count() if tile not in taken)
        if self.count is not None and free >= self.count:
            raise IndexError("no tile is free")
        self._held[owner].append(free)
        return free

    def give_back(self, owner: int) -> None:
        self._held[owner] = []


class TileLease:
    """The tiles of one network and its copies."""

    def __init__(self, leases: TileLeases, owner: int) -> None:
        self.owner = owner
        self._leases = leases

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def room(self) -> int | None:
        """How many tiles this network can have: its own and those that are nobody's; None without a limit."""
        if self._leases.count is None:
            return None
        return self._leases.count - self._leases.held_by_others(self.owner)

    @property
    def others(self) -> int:
        """How many tiles other networks hold."""
        return self._leases.held_by_others(self.owner)

    def tile(self, number: int) -> int:
        """The device's tile that is this network's `number`-th; taken if need be."""
        held = self._leases.held(self.owner)
        while len(held) <= number:
            self._leases.take(self.owner)
        return held[number]

    def give_back(self) -> None:
        """No tile is this network's any more."""
        self._leases.give_back(self.owner)
