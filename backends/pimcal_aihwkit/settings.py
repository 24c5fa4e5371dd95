"""The `device:` part of a profile whose backend is `aihwkit`.

What is left out comes from the preset, where one is named, and from aihwkit's defaults otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import field_validator, model_validator

from pimcal.errors import ConfigError
from pimcal_aihwkit.parts import Forward, Parts, TileKind
from pimcal_aihwkit.presets import PresetError, limits, preset

if TYPE_CHECKING:
    from pimcal.tile_check import Tiles


class AihwkitSettings(Parts):
    """A preset of aihwkit, or its parts spelled out, or both: parts that are given replace the preset's.

    `tile`: what computes the products. `vectorised` is pimcal's evaluation of aihwkit's model, all vectors at once and
    seeded; `cpp` and `torch` are aihwkit's own tiles. The C++ tile takes the noise of its products from the clock,
    so that no seed can repeat them.
    """

    @field_validator("preset")
    @classmethod
    def _find_preset(cls, name: str | None) -> str | None:
        """Refuse a preset that the installed aihwkit does not have; without aihwkit nothing can be opened anyway."""
        if name is not None and find_spec("aihwkit") is not None:
            try:
                preset(name)
            except PresetError as error:
                raise ValueError(str(error)) from error
            except ConfigError:
                pass  # aihwkit does not load; opening the device says why
        return name

    @model_validator(mode="after")
    def _refuse_what_cannot_be_combined(self) -> AihwkitSettings:
        if self.preset is None:
            _check_spelled_out(self.forward, self.tile)
        elif find_spec("aihwkit") is not None:
            from pimcal_aihwkit.config import build
            from pimcal_aihwkit.installation import import_aihwkit

            try:
                import_aihwkit()
            except ConfigError:
                return self  # told when the device is opened
            try:
                build(self)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def misfits(self, tiles: Tiles) -> Iterator[tuple[str, str]]:
        """What of a profile's `tiles:` part the preset does not allow, as dotted key and message."""
        if self.preset is None or find_spec("aihwkit") is None:
            return
        try:
            largest = limits(self.preset)
        except ConfigError:
            return  # told when the device is opened
        for key, size, limit in (("rows", tiles.rows, largest.rows), ("cols", tiles.cols, largest.cols)):
            if size is not None and limit is not None and size > limit:
                yield f"tiles.{key}", f"{self.preset} models tiles of at most {limit} {key} (got {size})"


def _check_spelled_out(forward: Forward, tile: TileKind) -> None:
    """Refuse what does not go together where no preset fills the gaps; aihwkit's defaults do."""
    if forward.weight_noise and forward.weight_noise_type in (None, "none"):
        raise ValueError("forward.weight_noise needs a weight_noise_type: additive_constant or pcm_read")
    management = forward.noise_management or "abs_max"
    if forward.input_bound not in (None, 1.0) and management != "none":
        raise ValueError(f"noise_management: {management} scales inputs to 1, so forward.input_bound must be 1")
    lacking = {
        "weight_noise": bool(forward.weight_noise) or forward.weight_noise_type not in (None, "none"),
        "ir_drop": bool(forward.ir_drop),
        "noise_management: abs_max_np_sum": management == "abs_max_np_sum",
    }
    wanted = [name for name, asked in lacking.items() if asked]
    if tile == "torch" and wanted:
        raise ValueError(f"aihwkit's torch tile has no {', '.join(wanted)}; use tile: vectorised or tile: cpp")
