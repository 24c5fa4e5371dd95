"""A configuration that is read again while the daemon runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pimcal.daemon.subject import Subject
from pimcal.errors import ConfigError
from pimcal.profile import Profile


def reloaded(subject: Subject, profile: Profile) -> Subject:
    """The same subject under another profile of the same hardware, found to be usable.

    Raises ConfigError where it describes other hardware, DataError where there are too few images for it.
    """
    if profile.backend != subject.profile.backend or profile.hardware_hash != subject.profile.hardware_hash:
        changed = ", ".join(_differences(subject.profile.resolved(), profile.resolved(), ""))
        raise ConfigError(f"other hardware needs a new start of the daemon, not a reload (changed: {changed})")
    subject.images(profile)
    return replace(subject, profile=profile)


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """The dotted keys at which two profiles differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path
