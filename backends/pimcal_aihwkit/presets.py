"""aihwkit's own presets for inference, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pimcal.errors import ConfigError
from pimcal.suggest import did_you_mean
from pimcal_aihwkit.installation import import_aihwkit

if TYPE_CHECKING:
    from aihwkit.simulator.configs import InferenceRPUConfig


class PresetError(ConfigError):
    """aihwkit has no such preset, or none that can be used here."""


class TileLimits(NamedTuple):
    """The largest tile of a preset, in inputs and outputs; None: any."""

    rows: int | None
    cols: int | None


def preset(name: str) -> InferenceRPUConfig:
    """A fresh configuration. Raises PresetError for an unknown one, and for one that models training only."""
    known = _inference_presets()
    if name in known:
        return known[name]()
    if name.endswith("Preset") and isinstance(getattr(_module(), name, None), type):
        why = f"'{name}' is a preset for training on the device, which pimcal does not do"
        raise PresetError(f"{why}; for inference aihwkit has: {', '.join(sorted(known))}")
    raise PresetError(f"aihwkit has no preset '{name}'{did_you_mean(name, known)} (known: {', '.join(sorted(known))})")


def limits(name: str) -> TileLimits:
    """How large the tiles of a preset are."""
    return limits_of(preset(name))


def limits_of(config: InferenceRPUConfig) -> TileLimits:
    return TileLimits(config.mapping.max_input_size or None, config.mapping.max_output_size or None)


def _module() -> Any:
    import_aihwkit()
    from aihwkit.simulator import presets

    return presets


def _inference_presets() -> dict[str, type[InferenceRPUConfig]]:
    presets = _module()
    from aihwkit.simulator.configs import InferenceRPUConfig

    found = {name: getattr(presets, name) for name in dir(presets)}
    return {
        name: item
        for name, item in found.items()
        if isinstance(item, type) and issubclass(item, InferenceRPUConfig) and name.endswith("Preset")
    }
