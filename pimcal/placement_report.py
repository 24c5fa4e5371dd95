"""The placement told to a person: each layer's tiles, cells and products, or why it stayed on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pimcal.network_products import NetworkProducts, Row
from pimcal.survey import unmatched

_MANY_BLOCKS, _NAMED = 256, 3  # of a layer before it is worth a note; layers that a note names


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """One row. `matrix` is groups x rows x columns; `loads` are the turns on the device that the layer takes part in,
    counted from 0; `mvms` are products for one input, None until one was seen; `share` is the layer's part of all
    multiplications by weights, None until a pass was seen."""

    name: str
    kind: str
    matrix: tuple[int, int, int] | None = None
    tiles: tuple[int, ...] = ()
    blocks: int = 0
    cells: int = 0
    loads: tuple[int, ...] = ()
    mvms: int | None = None
    reason: str = ""
    share: float | None = None

    @property
    def on_device(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Placement:
    """All rows in the order of the model, and what the device holds in all. `str()` is a table.

    `device_share`: the part of all multiplications by weights that the device makes; None until a pass was seen.

    `inputs_share`: multiplications of inputs by inputs, which no device that holds weights can make, over all.
    """

    layers: tuple[LayerPlacement, ...]
    tiles: int
    cells: int
    loads: int
    notes: tuple[str, ...] = ()
    inputs_share: float | None = None
    device_share: float | None = None

    @property
    def mvms(self) -> int | None:
        """Products for one input, over all layers; None until an input was seen."""
        known = [row.mvms for row in self.layers if row.on_device]
        return None if None in known else sum(m for m in known if m is not None)

    def with_positions(self, positions: Mapping[str, int]) -> Placement:
        """The same with the products per input filled in, from how many vectors one input gives each layer.

        Notes name the layers that the input did not reach.
        """
        rows = tuple(
            replace(row, mvms=row.blocks * positions.get(row.name, 0)) if row.on_device else row for row in self.layers
        )
        idle = [row.name for row in rows if row.mvms == 0]
        notes = tuple(f"{name}: placed, but not called by this input" for name in idle)
        return replace(self, layers=rows, notes=(*self.notes, *notes))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mvms": self.mvms}

    def __str__(self) -> str:
        streamed, shared = self.loads > 1, self.device_share is not None
        head = ("layer", "kind", "matrix", "tiles", *(["turns"] if streamed else []), "cells", "MVMs/input")
        rows = [(*head, *(["MACs"] if shared else []), "")]
        rows += [_cells(row, streamed, shared) for row in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        turns = f", in {self.loads} turns" if self.loads > 1 else ""
        lines.append(f"{self.tiles} tiles, {self.cells} cells used{turns}")
        if self.summary is not None:
            lines.append(self.summary)
        return "\n".join([*lines, *self.notes])

    @property
    def summary(self) -> str | None:
        """One line: how much of the network's work the device does, and what is left; None until a pass was seen."""
        if self.device_share is None:
            return None
        left = [row for row in self.layers if not row.on_device and row.share]
        listed = "; ".join(
            f"{row.name} {percent(row.share)}" for row in sorted(left, key=lambda r: -(r.share or 0))[:3]
        )
        more = f" ({listed}{'; ...' if len(left) > 3 else ''} on the host)" if left else ""
        inputs = f"; inputs by inputs, on the host: {percent(self.inputs_share)} of all" if self.inputs_share else ""
        return f"the device makes {percent(self.device_share)} of the multiplications by weights{more}{inputs}"


def percent(share: float | None) -> str:
    """A share as people read it; a little is not nothing, and nearly all is not all."""
    if share is None:
        return ""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{min(value, 99.9) if share < 1 - 1e-9 else 100:.4g} %" if value >= 99.95 else f"{value:.3g} %"


def _cells(row: LayerPlacement, streamed: bool, shared: bool) -> tuple[str, ...]:
    turns, share = [_ranges(row.loads)] if streamed else [], [percent(row.share)] if shared else []
    if not row.on_device:
        return (row.name, row.kind, "", "", *turns, "", "", *share, f"host: {row.reason}")
    groups, rows, cols = row.matrix or (0, 0, 0)
    matrix = f"{groups} x {rows} x {cols}" if groups > 1 else f"{rows} x {cols}"
    mvms = "" if row.mvms is None else str(row.mvms)
    return (row.name, row.kind, matrix, _ranges(row.tiles), *turns, str(row.cells), mvms, *share, "")


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3,7" for (0, 1, 2, 3, 7)."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def report(products: NetworkProducts) -> Placement:
    """The report of a deployment."""
    found, seen, array = [*products.rows()], products.first_pass, products.array
    total = 0 if seen is None else seen.macs.total() + seen.others.total()

    def share(macs: int | None) -> float | None:
        return None if macs is None or seen is None else macs / max(1, total)

    rows = [_row(row, share(row.macs)) for row in found]
    if seen is not None:
        rows += [
            LayerPlacement(name, "function", reason="no device can make this product", share=share(macs))
            for name, macs in seen.others.items()
        ]
        rows += [
            LayerPlacement(
                name, "function", reason="multiplies by a buffer or a constant, which is no weight", share=0.0
            )
            for name in seen.constants
        ]
    idle = unmatched({row.name for row in found}, products.host)
    notes = [f"host pattern '{pattern}' matches no layer of this model" for pattern in idle]
    if not array.device.capabilities.effective_weights:
        notes += _many_blocks(rows)
    cells = sum({id(row.placed): row.placed.cells for row in found if row.placed is not None}.values())
    inputs = None if seen is None else seen.inputs.total() / max(1, total + seen.inputs.total())
    notes += products.warnings()
    tiles = len({tile for _, tile in array.layouts})
    made = None if seen is None else share(sum(row.macs or 0 for row in found if row.placed is not None))
    return Placement(tuple(rows), tiles, cells, array.loads, tuple(notes), inputs, made)


def _row(row: Row, share: float | None) -> LayerPlacement:
    if row.placed is None:
        return LayerPlacement(row.name, row.kind, reason=row.reason, share=share)
    shape, spot = row.placed.shape, row.placed
    matrix = (shape.groups, shape.rows, shape.cols)
    return LayerPlacement(row.name, row.kind, matrix, spot.tiles, len(spot.blocks), spot.cells, spot.loads, share=share)


def _many_blocks(rows: Sequence[LayerPlacement]) -> Iterator[str]:
    """Each block is a product of its own: hundreds of them take their time on a device that multiplies them."""
    many = [row for row in rows if row.blocks > _MANY_BLOCKS]
    grouped = [row for row in many if row.matrix and row.blocks == row.matrix[0]]
    if grouped:
        pattern = ", ".join(f"'{row.name}'" for row in grouped[:_NAMED])
        yield (
            f"{_counted(grouped)}, one a group: larger tiles do not help these; where they take too long, keep them on "
            f"the host (host: [{pattern}{', ...' if len(grouped) > _NAMED else ''}])"
        )
    cut = [row for row in many if row not in grouped]
    if cut:
        yield f"{_counted(cut)}: larger tiles (tiles: rows, cols) need fewer"


def _counted(rows: Sequence[LayerPlacement]) -> str:
    names = ", ".join(f"{row.name} ({row.blocks})" for row in rows[:_NAMED])
    others = f" and {len(rows) - _NAMED} more layers" if len(rows) > _NAMED else ""
    return f"{names}{others} are cut into {sum(row.blocks for row in rows)} blocks"
