"""`pimcal daemon` as a process of its own."""

import json
import os
import signal
import time
from types import SimpleNamespace

from pimcal.daemon.client import ask
from pimcal.errors import DeviceUnavailableError

PATIENCE_S = 60.0
HOURLY = {"every": "1h", "when": [{"probe_error": 0.02}]}
DRIFT = {"kind": "linear", "rate_per_s": 1e-5}


class Daemon:
    """Started in `hosts`' folder with a profile and a store beside it; `status` is what it said last."""

    def __init__(self, hosts, lab):
        self._hosts, self._lab = hosts, lab
        self.store, self.profile = hosts.beside / "store", hosts.beside / "daemon.yaml"
        self.socket = self.store / "daemon.sock"
        self.status = {}
        self.write()

    def write(self, recalibration=HOURLY, device=None, backend="gaussian", **sections):
        """The profile: noise that grows by a few percent an hour, unless a device is given."""
        noise = {"noise": "mul", "eta0": 0.3, "drift": DRIFT, "seed": 7}
        content = {"schema": "pimcal/1", "backend": backend, "device": noise if device is None else device}
        content |= {"calibration": {"images": 64}, "recalibration": recalibration, **sections}
        self.profile.write_text(json.dumps(content, indent=1))

    def options(self, model=None, weights=True):
        """`model`: a spec, which brings its own weights."""
        network = model or f"{self._lab.network}:net"
        found = ["--profile", self.profile, "--model", network, "--data", self._lab.data]
        weights = weights and model is None
        return [*found, *(["--weights", self._lab.weights] if weights else []), "--store", self.store]

    def start(self, *more, **subject):
        """Returns when its socket answers, or it has ended."""
        self._hosts.start("daemon", *self.options(**subject), *more)
        return self

    def started(self, *more, state="waiting", **subject):
        self.start(*more, **subject)
        self.until(lambda status: status["state"] == state)
        return self

    def ask(self, **request):
        return ask(self.socket, request)

    def until(self, reached):
        """Poll the status until `reached(status)`."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            try:
                self.status = self.ask(do="status")
                if reached(self.status):
                    return self.status
            except DeviceUnavailableError:
                if self.has_ended():
                    raise AssertionError(f"the daemon has ended: {self.wait().err}") from None
            time.sleep(0.01)
        raise AssertionError(f"it came not to that: {self.status}")

    def has_ended(self):
        """Ended processes stay zombies until the nursery has told of them, which it does at once."""
        try:
            os.kill(self._hosts.process_id, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self, number):
        os.kill(self._hosts.process_id, number)

    def stopped(self, number=signal.SIGTERM):
        self.kill(number)
        return self.wait()

    def wait(self) -> SimpleNamespace:
        return self._hosts.wait()
