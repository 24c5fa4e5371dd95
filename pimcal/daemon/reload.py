"""A configuration that is read again while the daemon runs."""

from __future__ import annotations

from dataclasses import replace

from pimcal.daemon.subject import Subject
from pimcal.errors import ConfigError
from pimcal.profile import Profile
from pimcal.profile.differences import differences


def reloaded(subject: Subject, profile: Profile) -> Subject:
    """The same subject under another profile of the same hardware, found to be usable.

    Raises ConfigError where it describes other hardware, DataError where there are too few images for it.
    """
    if profile.backend != subject.profile.backend or profile.hardware_hash != subject.profile.hardware_hash:
        changed = ", ".join(key for key, _, _ in differences(subject.profile.hardware, profile.hardware))
        raise ConfigError(f"other hardware needs a new start of the daemon, not a reload (changed: {changed})")
    subject.images(profile)
    return replace(subject, profile=profile)
