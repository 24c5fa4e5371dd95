"""The tiles of a deployment: who needs which of them when, what is on them, and what is programmed next.

A network that does not fit is streamed: tile after tile gets its next content as soon as no layer needs the former.
Layers are expected in the order in which they were placed. Results are right in any order, as each layer looks what is
there before it uses it; out of order more is programmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pimcal.device import Device
from pimcal.placement import Placed
from pimcal.references import ReferenceColumns
from pimcal.tile_images import Feed, Image, Source, TileImages, TileLayout


@dataclass(frozen=True, slots=True)
class Step:
    """Products that need the same tiles of a load. Steps and layers are numbered in the order of the placement."""

    number: int
    layer: int
    load: int
    tiles: tuple[int, ...]
    content: tuple[int, int]  # what `Device.resident` says where the tiles are programmed


class TileArray:
    """Programs what each step needs before its products run, and where it can, what later steps need."""

    def __init__(self, device: Device, references: ReferenceColumns) -> None:
        self.device = device
        self.references = references
        self.lease = device.tiles.lease()
        self._owner = self.lease.owner
        self._images = TileImages(device.capabilities, references)
        self._steps: list[Step] = []
        self._first: dict[tuple[int, int], Step] = {}  # that uses a load's tile
        self._last: dict[tuple[int, int], Step] = {}
        self._last_before: dict[tuple[int, int], Step | None] = {}  # of the loads before, on the same tile
        self._feed: Feed | None = None
        self._ahead = False
        self._reached = -1  # the furthest step of this pass
        self._unused: dict[int, int] = {}  # tiles programmed ahead in this pass, and the step that they are for

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_feed": None}  # a copy of the network starts a feed of its own

    # what there is to program, told once

    def add(self, placed: Placed, source: Source) -> None:
        """Make a layer's blocks part of the array; `source` is asked for its matrices at each programming."""
        self._images.add(placed, source)

    def plan(self, needs: Iterable[tuple[int, tuple[int, ...]]]) -> tuple[Step, ...]:
        """The steps of the next layer, from the load and tiles that each needs; layers come in their order."""
        layer = self._steps[-1].layer + 1 if self._steps else 0
        first = len(self._steps)
        for load, tiles in needs:
            step = Step(len(self._steps), layer, load, tiles, (self._owner, load))
            self._steps.append(step)
            for tile in tiles:
                self._first.setdefault((load, tile), step)
                self._last[load, tile] = step
        return tuple(self._steps[first:])

    def start(self) -> None:
        """Program the first load. Call it when all layers are planned."""
        self.connect()
        if not self._steps:  # all there is comes up when the network runs
            return
        feed = self._feed_from(self._steps[0])
        while feed.load == 0 and feed.tiles:
            self._write(feed.take(), self.device.program)

    def connect(self) -> None:
        """Find out which steps follow one another on each tile. Call it when further layers are planned."""
        self._feed = None
        self._ahead = self.loads > 1
        busy: dict[int, Step] = {}
        for load, tile in sorted(self._last):
            before = self._last_before[load, tile] = busy.get(tile)
            last = self._last[load, tile]
            busy[tile] = last if before is None or before.number < last.number else before

    def forget(self, tiles: Iterable[int]) -> None:
        """What is on these tiles is to be programmed anew before it is used."""
        self._feed = None
        for tile in tiles:
            self.device.resident.pop(tile, None)

    @property
    def layouts(self) -> dict[tuple[int, int], TileLayout]:
        """By load and tile."""
        return self._images.layouts

    @property
    def loads(self) -> int:
        """How many turns the network takes on the device; more than one means it is streamed."""
        return self._images.loads

    # what is on the device

    @property
    def resident(self) -> dict[int, int]:
        """The tiles that hold something of this network, and of which load."""
        return {tile: load for tile, (owner, load) in self.device.resident.items() if owner == self._owner}

    def adopt(self, resident: Mapping[int, int]) -> None:
        """Take it that tiles hold something of these loads: a simulator's state was restored with it."""
        for load in sorted(set(resident.values())):
            tiles = {tile for tile, theirs in resident.items() if theirs == load}
            for _ in self._images.build(load, tiles):  # tells the constants of their reference columns
                pass
        self.device.resident = {tile: (self._owner, load) for tile, load in resident.items()}

    # running

    def begin_pass(self) -> None:
        """The network is about to be run: its first layer comes next."""
        self._feed = None
        self._reached = -1
        self._unused.clear()

    def ensure(self, step: Step) -> None:
        """See to it that the tiles of `step` hold what it needs."""
        self.device.check_open()
        resident, content = self.device.resident, step.content
        for tile in step.tiles:
            if resident.get(tile) != content:
                self._program(step)
                break
        if self._ahead:
            self._reached = max(self._reached, step.number)
            self._program_ahead(step)

    def _missing(self, step: Step) -> list[int]:
        return [tile for tile in step.tiles if self.device.resident.get(tile) != step.content]

    def _program(self, step: Step) -> None:
        if any(self._unused.get(tile, -1) > self._reached for tile in self._missing(step)):
            self._ahead = False  # this network comes back to what seemed done: do not replace it early again
        feed, self._feed = self._feed, None  # whatever goes wrong, the next one starts anew
        while missing := self._missing(step):
            if feed is None or feed.load != step.load or not feed.tiles.issuperset(missing):
                feed = self._feed_from(step)
            self._write_unless_over(feed.take(), step, self.device.program)
        self._feed = feed

    def _program_ahead(self, step: Step) -> None:
        feed, self._feed = self._feed, None
        if feed is None or feed.load < step.load:
            feed = self._feed_from(step)
        while (image := feed.peek()) is not None and self._is_free(image, step):
            if self._write_unless_over(feed.take(), step, self.device.program_ahead):
                self._unused[image.tile] = self._first[image.load, image.tile].number
        self._feed = feed

    def _feed_from(self, step: Step) -> Feed:
        """The images that are not there, from a step's load on."""

        def wanted(load: int, tile: int) -> bool:
            return self.device.resident.get(tile) != (self._owner, load)

        return Feed(self._images, step.load, wanted)

    def _is_free(self, image: Image, step: Step) -> bool:
        """Whether no product of `step` or later needs what an image replaces.

        A layer's tiles are its own until another layer begins, as it may be called several times in a row; only its
        own later parts may replace its earlier ones.
        """
        last = self._last_before[image.load, image.tile]
        if last is None or last.layer < step.layer:
            return True
        return last.number < step.number and self._first[image.load, image.tile].layer == step.layer

    def _write_unless_over(self, image: Image, step: Step, program: Callable[[int, Tensor], None]) -> bool:
        """Program an image if `step` or a later one uses it; the layers that would have may not have been called."""
        wanted = self._last[image.load, image.tile].number >= step.number
        if wanted:
            self._write(image, program)
        return wanted

    def _write(self, image: Image, program: Callable[[int, Tensor], None]) -> None:
        self._unused.pop(image.tile, None)
        self.device.resident.pop(image.tile, None)  # an interrupted programming leaves nothing that can be used
        program(image.tile, image.weights)
        self.device.resident[image.tile] = (self._owner, image.load)
