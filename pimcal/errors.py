"""The exceptions that pimcal raises for mistakes and faults outside itself, and their exit codes.

Every message says what happened, where, and what to do about it. The command line prints the message
without a traceback and exits with `exit_code` (the numbers are those of BSD's sysexits).
"""


class PimcalError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class PlacementWarning(UserWarning):
    """What a user should know of where a network's products are made, such as a layer that stays on the host."""


class UsageError(PimcalError):
    """A command or a function was called with arguments that do not fit together."""

    exit_code = 2


class DataError(PimcalError):
    """Images, labels, weights or a record are unreadable, empty or do not fit the model."""

    exit_code = 65


class DeviceUnavailableError(PimcalError):
    """The device is absent, closed or lost."""

    exit_code = 69


class DeviceBusyError(PimcalError):
    """Another process or session owns the device."""

    exit_code = 75


class ConfigError(PimcalError):
    """A profile, a placement or the installation is wrong."""

    exit_code = 78


class MissingExtraError(ConfigError):
    """A feature needs an optional library that is not installed."""

    def __init__(self, feature: str, library: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {library}, which is not installed; install it with: pip install 'pimcal[{extra}]'"
        )
        self.extra = extra


class StorageError(PimcalError):
    """A file could not be written: disk full, no permission, no such folder."""

    exit_code = 74
