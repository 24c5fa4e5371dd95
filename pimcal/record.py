"""The record: what a calibration found, and what it was made with. One file, applied and undone as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pimcal.errors import DataError
from pimcal.files import read_regular, write_atomically
from pimcal.profile.differences import differences as differing_values
from pimcal.stored import KNOWN_KEYS_ONLY, Count, Details, Finite, Number, Text, checked

if TYPE_CHECKING:
    from torch import Tensor

    from pimcal.corrections import Corrections
    from pimcal.device import Device

FORMAT = "pimcal-record/1"
_DTYPES = "float32", "float64", "float16", "bfloat16"
LARGEST = 2**30  # bytes of a file: a network of a million channels has some 10 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a record was made with, so that it is not applied elsewhere unnoticed.

    `profile_hash` covers what a correction depends on: the profile without its calibration, gate and schedule;
    `hardware` holds those values, None in records of earlier versions.
    `wall_time` is UTC, ISO 8601; `telemetry` holds the device's readings by name and unit (temperature_c,
    simulated_time_s, ... where it has them); `before` and `after` are the metric on held-out data.
    """

    __pydantic_config__: ClassVar = KNOWN_KEYS_ONLY

    pimcal: Text
    torch: Text
    backend: Text
    profile: Text
    profile_hash: Text
    model_hash: Text
    device: Text
    firmware: Text
    wall_time: Text
    images: Count
    batches: Count
    mvms: Count
    seconds: Finite
    seed: Count | None = None
    telemetry: dict[Text, Number] = field(default_factory=dict)
    metric: Text | None = None
    before: Number | None = None
    after: Number | None = None
    hardware: Details | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What a record's file has in its header."""

    __pydantic_config__: ClassVar = KNOWN_KEYS_ONLY

    format: Text
    method: Text
    made_with: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Corrections by module name, the method that found them, and their provenance."""

    method: str
    corrections: Corrections
    made_with: Provenance

    @property
    def id(self) -> str:
        """The first 16 hex digits of a SHA-256 over the method, the corrections and the model and profile."""
        digest = hashlib.sha256()
        for part in (self.method, self.made_with.model_hash, self.made_with.profile_hash):
            digest.update(part.encode())
        for name, tensor in sorted(_flat(self.corrections).items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()[:16]

    def judged(self, metric: str, before: float, after: float) -> Record:
        """The same record with a metric's value before and after."""
        return replace(self, made_with=replace(self.made_with, metric=metric, before=before, after=after))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: corrections as tensors, everything else as JSON in its header.

        Raises StorageError; a file that stood there before is untouched then.
        """
        path = Path(path)
        write_atomically(path, self.to_bytes())
        return path

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        from safetensors.torch import save

        about = {"format": FORMAT, "method": self.method, "made_with": asdict(self.made_with)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _flat(self.corrections).items()}
        return save(tensors, {"pimcal": json.dumps(about, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a file that `save` wrote. Raises DataError where it is unreadable or no record."""
        return cls.from_bytes(read_file(path), path)

    @classmethod
    def from_bytes(cls, content: bytes, path: str | Path) -> Record:
        """As `load`, from what was read of a file already; `path` is told in errors."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = dict(sorted(load(content).items()))  # safetensors gives them in any order
            found = json.loads(_metadata(content)["pimcal"])
            if found["format"] != FORMAT:
                raise DataError(f"{path}: format {found['format']!r}, this pimcal reads {FORMAT!r}")
            about = checked(_About, found)
            return cls(method=about.method, corrections=_nested(tensors), made_with=about.made_with)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            raise _no_record(path, error) from error


def read_file(path: str | Path) -> bytes:
    """The content of a record's file. Raises DataError where it cannot be read."""
    try:
        return read_regular(path, LARGEST)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except OSError as error:
        raise _no_record(path, error) from error


def check_fits(record: Record, model_hash: str, device: Device, *, force: bool = False) -> None:
    """Raise DataError where `record` belongs to another model, or (unless `force`) to another device or profile."""
    made = record.made_with
    if made.model_hash != model_hash:
        raise DataError(
            f"record {record.id} was made for a model with hash {made.model_hash[:12]}, this one has "
            f"{model_hash[:12]}; calibrate again"
        )
    found = [*elsewhere(made, device)]
    if found and not force:
        told = "; ".join(f"{key}: {there} there, {here} here" for key, there, here in found)
        raise DataError(
            f"record {record.id} was made elsewhere ({told}); "
            "calibrate again, or apply it all the same (force=True, --force)"
        )


def elsewhere(made: Provenance, device: Device) -> Iterator[tuple[str, Any, Any]]:
    """What of the device and its profile is not as it was: name, there, here."""
    if made.device != device.capabilities.identity:
        yield "device", made.device, device.capabilities.identity
    if made.profile_hash != device.profile.hardware_hash:
        if made.hardware is None:
            yield "profile_hash", made.profile_hash[:12], device.profile.hardware_hash[:12]
        else:
            yield from differing_values(made.hardware, device.profile.hardware)


def differences(first: Record, second: Record) -> dict[str, Any]:
    """What two records disagree on: provenance by field, and corrections by tensor (largest absolute difference)."""
    theirs = {"method": second.method, **asdict(second.made_with)}
    ours = {"method": first.method, **asdict(first.made_with)}
    fields = {key: [there, here] for key, there, here in differing_values(ours, theirs)}
    a, b = _flat(first.corrections), _flat(second.corrections)
    tensors: dict[str, float | str] = {}
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            tensors[name] = f"only in the {'first' if name in a else 'second'}"
        elif a[name].shape != b[name].shape:
            tensors[name] = f"shape {tuple(a[name].shape)} and {tuple(b[name].shape)}"
        else:
            tensors[name] = float((a[name] - b[name]).abs().max())
    return {"fields": fields, "tensors": tensors}


def _no_record(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a calibration record ({type(error).__name__}: {error})")


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file has in its header beside tensors; safetensors reads it from files only."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def _flat(corrections: Corrections) -> dict[str, Tensor]:
    return {f"{name}:{key}": tensor for name, values in corrections.items() for key, tensor in values.items()}


def _bytes(tensor: Tensor) -> bytes:
    """Whatever the type is: numpy has no bfloat16."""
    import torch

    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _nested(tensors: dict[str, Tensor]) -> Corrections:
    """Raises ValueError for what no calibration can have found."""
    found: Corrections = {}
    for name, tensor in tensors.items():
        module, _, key = name.rpartition(":")
        _check_values(name, key, tensor)
        found.setdefault(module, {})[key] = tensor
    for module, values in found.items():
        if values.keys() not in ({"mean", "var"}, {"gain", "offset"}):
            raise ValueError(f"{module or 'it'} has {', '.join(values)}; mean and var, or gain and offset, are needed")
    return found


def _check_values(name: str, key: str, tensor: Tensor) -> None:
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise ValueError(f"{name} holds {tensor.dtype}, and not {' or '.join(_DTYPES)}")
    if tensor.ndim != 1 or not tensor.numel():
        raise ValueError(f"{name} has shape {list(tensor.shape)}; one value a channel is needed")
    if not bool(tensor.isfinite().all()) or (key == "var" and bool((tensor < 0).any())):
        raise ValueError(f"{name} has values that are infinite, no numbers or negative variances")
