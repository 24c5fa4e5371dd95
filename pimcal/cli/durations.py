"""Durations on the command line."""

from __future__ import annotations

from pimcal.errors import UsageError


def seconds(option: str, text: str) -> float:
    """What an option such as `--horizon 30d` means. Raises UsageError, with the option's name."""
    from pimcal.profile.duration import parse_sensible

    try:
        return parse_sensible(text).total_seconds()
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from error
