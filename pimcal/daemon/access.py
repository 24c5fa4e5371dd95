"""Reaching the one device that a daemon owns: by the newest configuration, or else by the last one that worked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pimcal import registry
from pimcal.backend import Capabilities
from pimcal.daemon.clock import Clock
from pimcal.daemon.guests import Guests
from pimcal.daemon.in_force import Active
from pimcal.daemon.keeper import Keeper
from pimcal.daemon.lock import held, lock_file
from pimcal.daemon.lost import write_alert
from pimcal.daemon.notes import Notes
from pimcal.daemon.subject import Subject
from pimcal.daemon.watched import Watched
from pimcal.deployment import deploy
from pimcal.device import Device, open_device
from pimcal.errors import ConfigError, DeviceBusyError, DeviceUnavailableError, PimcalError, StorageError
from pimcal.profile.differences import differences
from pimcal.store import Key, Store

UNUSABLE = (DeviceUnavailableError, DeviceBusyError, ConfigError, StorageError)  # why a device cannot be used now


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is for. `anew`: see `Keeper`; `told()`: called, in its thread, when its status has changed."""

    subject: Subject
    store: Path
    clock: Clock
    anew: bool = False
    told: Callable[[], None] = lambda: None


class Access:
    """Opens it, the first time and again; what one time has left is there the next time.

    `key`, `notes`: None until it was open once. `keeper`: None while it is not open.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        locks: ExitStack,
        guests: Guests,
        beat: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """`locks` holds what is held until the daemon ends; `beat`, `changed`: see `Watched`, `Keeper`."""
        self._job, self._store, self._locks, self._guests = job, store, locks, guests
        self._beat, self._changed = beat, changed
        self._wanted = job.subject
        self._worked: Subject | None = None
        self._active: Active | None = None
        self._capabilities: Capabilities | None = None
        self._mvms = 0
        self.key: Key | None = None
        self.notes: Notes | None = None
        self.keeper: Keeper | None = None

    @property
    def mvms(self) -> int:
        """What the device was asked for, all times together."""
        return self._mvms + (self.keeper.net.device.cost.mvms if self.keeper else 0)

    @property
    def active(self) -> Active | None:
        """What is in force, also while the device is not open; None where there is nothing."""
        return self.keeper.active if self.keeper else self._active

    def use(self, subject: Subject) -> bool:
        """Work by another profile of the same hardware; whether it holds now, else when the device is opened next."""
        self._wanted = subject
        if self.notes is not None:
            self.notes.solved("configuration")
        if self.keeper is None or not _reached_alike(self.keeper.subject, subject):
            return False
        self.keeper.use(subject)
        self._worked = subject
        return True

    @contextmanager
    def opened(self) -> Iterator[Keeper]:
        """Open for a block. Raises one of `UNUSABLE`."""
        with ExitStack() as stack:
            yield self._reached(stack)

    def _reached(self, stack: ExitStack) -> Keeper:
        former = self._worked
        try:
            return stack.enter_context(self._opened(self._wanted))
        except UNUSABLE as error:
            if former is None or _reached_alike(former, self._wanted):
                raise
            return self._gone_back(stack, former, error)

    def _gone_back(self, stack: ExitStack, former: Subject, why: PimcalError) -> Keeper:
        try:
            keeper = stack.enter_context(self._opened(former))
        except UNUSABLE as error:
            raise why from error
        self._wanted = former
        message = f"the device cannot be used by the new one, the former one holds: {why}"
        if keeper.notes.problem("configuration", message):
            write_alert(self._store, keeper.key, "configuration", message)
        return keeper

    @contextmanager
    def _opened(self, subject: Subject) -> Iterator[Keeper]:
        with open_device(subject.profile) as device:
            device.backend = Watched(device.backend, self._beat)
            self._take_lock(device.capabilities)
            self._check_speed(device)
            keeper = self._keeper(subject, device)
            self.key, self.notes, self._worked = keeper.key, keeper.notes, subject
            self.keeper = keeper
            self._guests.open()
            try:
                yield keeper
            finally:
                self._guests.close("the device is closed; `pimcal daemon status` tells why")
                self._mvms, self._active, self.keeper = self.mvms, keeper.active, None

    def _keeper(self, subject: Subject, device: Device) -> Keeper:
        example = subject.images(subject.profile).held_out[0]
        return Keeper(
            deploy(subject.model, device, example), subject, self._store, self._guests, self._job.clock.now,
            registry.default().triggers(), anew=self._job.anew and self._active is None, changed=self._changed,
            notes=self.notes, fallback=self._active,
        )  # fmt: skip

    def _take_lock(self, found: Capabilities) -> None:
        """For good, at the first time; later the device must be the same one."""
        if self._capabilities is None:
            what = f"device {found.identity} with store {self._store.folder}"
            self._locks.enter_context(held(lock_file(self._store.folder, found.identity), what))
            self._capabilities = found
        elif found.identity != self._capabilities.identity:
            raise DeviceUnavailableError(
                f"another device answers there: {found.identity} instead of {self._capabilities.identity}"
            )
        elif changed := [*differences(asdict(self._capabilities), asdict(found))]:
            told = ", ".join(f"{name}: {now}, it was {before}" for name, before, now in changed)
            raise DeviceUnavailableError(
                f"{found.identity} is not what it was ({told}); where that is meant, start the daemon anew"
            )

    def _check_speed(self, device: Device) -> None:
        if not device.capabilities.simulated_clock and self._job.clock.lasts_s(1.0) != 1.0:
            raise ConfigError(f"{device.capabilities.identity} has no simulated clock, so --speed is not for it")


def _reached_alike(one: Subject, other: Subject) -> bool:
    """Whether a device that is open for one can be used for the other."""
    return one.profile.settings == other.profile.settings
