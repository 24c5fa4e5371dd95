"""The placement told to a person: each layer's tiles, cells and products, or why it stayed on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pimcal.placement import Placed
from pimcal.survey import Candidate, unmatched
from pimcal.tile_array import TileArray


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """One row. `matrix` is groups x rows x columns; `loads` are the turns on the device that the layer takes part in,
    counted from 0; `mvms` are products for one input, None until one was seen."""

    name: str
    kind: str
    matrix: tuple[int, int, int] | None = None
    tiles: tuple[int, ...] = ()
    blocks: int = 0
    cells: int = 0
    loads: tuple[int, ...] = ()
    mvms: int | None = None
    reason: str = ""

    @property
    def on_device(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Placement:
    """All rows in the order of the model, and what the device holds in all. `str()` is a table."""

    layers: tuple[LayerPlacement, ...]
    tiles: int
    cells: int
    loads: int
    notes: tuple[str, ...] = ()

    @property
    def mvms(self) -> int | None:
        """Products for one input, over all layers; None until an input was seen."""
        known = [row.mvms for row in self.layers if row.on_device]
        return None if None in known else sum(m for m in known if m is not None)

    def with_positions(self, positions: Mapping[str, int]) -> Placement:
        """The same with the products per input filled in, from how many vectors one input gives each layer.

        Notes name the layers that the input did not reach: a model's own code may use a layer's weights without
        calling the layer, and then computes that product digitally.
        """
        rows = tuple(
            replace(row, mvms=row.blocks * positions.get(row.name, 0)) if row.on_device else row for row in self.layers
        )
        idle = [row.name for row in rows if row.mvms == 0]
        notes = tuple(
            f"{name}: placed, but not called by this input; if its weights are used, then digitally" for name in idle
        )
        return replace(self, layers=rows, notes=(*self.notes, *notes))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mvms": self.mvms}

    def __str__(self) -> str:
        streamed = self.loads > 1
        rows = [("layer", "kind", "matrix", "tiles", *(["turns"] if streamed else []), "cells", "MVMs/input", "")]
        rows += [_cells(row, streamed) for row in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        turns = f", in {self.loads} turns" if self.loads > 1 else ""
        lines.append(f"{self.tiles} tiles, {self.cells} cells used{turns}")
        return "\n".join([*lines, *self.notes])


def _cells(row: LayerPlacement, streamed: bool) -> tuple[str, ...]:
    turns = [_ranges(row.loads)] if streamed else []
    if not row.on_device:
        return (row.name, row.kind, "", "", *turns, "", "", f"host: {row.reason}")
    groups, rows, cols = row.matrix or (0, 0, 0)
    matrix = f"{groups} x {rows} x {cols}" if groups > 1 else f"{rows} x {cols}"
    mvms = "" if row.mvms is None else str(row.mvms)
    return (row.name, row.kind, matrix, _ranges(row.tiles), *turns, str(row.cells), mvms, "")


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3,7" for (0, 1, 2, 3, 7)."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def report(
    candidates: Sequence[Candidate], placed: Mapping[str, Placed], array: TileArray, host: Sequence[str]
) -> Placement:
    """The report of a deployment."""
    rows = []
    for candidate in candidates:
        kind = type(candidate.module).__name__
        spot = placed.get(candidate.name)
        if spot is None:
            rows.append(LayerPlacement(candidate.name, kind, reason=candidate.reason))
            continue
        shape = spot.shape
        rows.append(
            LayerPlacement(
                candidate.name, kind, (shape.groups, shape.rows, shape.cols), spot.tiles, len(spot.blocks),
                spot.cells, spot.loads,
            )
        )  # fmt: skip
    notes = tuple(f"host pattern '{p}' matches no layer of this model" for p in unmatched(candidates, host))
    cells = sum({id(p): p.cells for p in placed.values()}.values())
    return Placement(tuple(rows), len({tile for _, tile in array.layouts}), cells, array.loads, notes)
