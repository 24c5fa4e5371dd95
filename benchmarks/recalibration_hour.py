"""The resident memory of a real daemon that serves HTTP while time passes 20 times as fast, after its first tenth.

A Gaussian device whose noise follows a temperature with a period of 4 hours. The schedule asks for a look every 15
minutes and at each full hour, a calibration is at most 6 hours old, and a change of 2 % that a look finds is undone. A
client posts images every 30 s and reads the metrics every 5 s. CPU time is that of the daemon.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from recalibration_daemon import read_whole

from pimcal.daemon.client import ask
from pimcal.errors import DeviceUnavailableError
from pimcal.store import Store

SPEED = 20
SAMPLE_S, INFER_EVERY = 5.0, 6  # samples
LIMIT_MB = 5.0
PATIENCE_S = 120.0
PROFILE = {
    "schema": "pimcal/1",
    "extends": "gaussian_mul",
    "device": {
        "eta0": 0.1,
        "drift": {"kind": "temperature", "amplitude_c": 10.0, "period_s": 14_400.0, "eta0_per_c": 0.08},
    },
    "calibration": {"images": 64},
    "recalibration": {
        "every": "15m",
        "cron": "0 * * * *",
        "when": [{"probe_error": 0.02}],
        "max_age": "6h",
    },
}  # fmt: skip
SUBJECT = ["--model", "pimcal_demo.network:load_network", "--data", "pimcal_demo.digits:held_out"]


class Client:
    """Uses a daemon's HTTP interface; `answers` counts what came, by path and status."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answers: Counter[str] = Counter()
        stream = io.BytesIO()
        np.save(stream, np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32))
        self._images = stream.getvalue()

    def infer(self) -> None:
        self._call("POST", "/infer", self._images)

    def metrics(self) -> None:
        self._call("GET", "/metrics")

    def _call(self, method: str, path: str, body: bytes | None = None) -> None:
        try:
            with closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)) as connection:
                connection.request(method, path, body)
                response = connection.getresponse()
                response.read()
            self.answers[f"{path} {response.status}"] += 1
        except (OSError, HTTPException) as error:
            self.answers[f"{path} {type(error).__name__}"] += 1


def measure_hour(minutes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        store, port = Path(folder, "store"), free_port()
        with running(Path(folder), store, port) as process:
            client = Client(port)
            until_ready(store, process)
            resident_mb = sampled(process, client, minutes * 60)
            status, cpu_s = ask(store / "daemon.sock", {"do": "status"}), cpu_seconds(process)
        read_whole(store)
        return told(resident_mb) | {
            "minutes": minutes,
            "speed": SPEED,
            "cpu_s": round(cpu_s, 1),
            "problems": status["problems"],
            "counters": status["counters"],
            "outcomes": outcomes(store),
            "answers": dict(client.answers),
            "store_mb": round(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / 2**20, 2),
        }


def told(resident_mb: list[float]) -> dict[str, Any]:
    settled = resident_mb[len(resident_mb) // 10 :]
    growth_mb = max(settled) - settled[0]
    return {
        "mb_after_first_tenth": round(settled[0], 2),
        "mb_at_end": round(settled[-1], 2),
        "growth_mb": round(growth_mb, 2),
        "mb_by_tenth": [round(resident_mb[len(resident_mb) * tenth // 10], 1) for tenth in range(10)],
        "samples": len(resident_mb),
        "reached": growth_mb <= LIMIT_MB,
    }


@contextmanager
def running(folder: Path, store: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon, ended by SIGTERM; its log is shown where that is not what ends it."""
    profile, log = folder / "profile.yaml", folder / "log"
    profile.write_text(json.dumps(PROFILE))  # JSON is YAML, too
    command = [sys.executable, "-m", "pimcal", "daemon", "--profile", str(profile), *SUBJECT, "--store", str(store)]
    command += ["--speed", str(SPEED), "--http", str(port)]
    with log.open("wb") as stream, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(PATIENCE_S):
                sys.stderr.write(log.read_text())
    assert process.returncode == 0, process.returncode


def until_ready(store: Path, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            if ask(store / "daemon.sock", {"do": "status"})["ready"]:
                return
        except DeviceUnavailableError:
            pass  # not yet
        time.sleep(0.5)
    raise SystemExit(f"the daemon is not ready (exit code {process.poll()})")


def sampled(process: subprocess.Popen[bytes], client: Client, seconds: float) -> list[float]:
    """Resident memory (MB) each `SAMPLE_S`, while a client uses the daemon."""
    start_s, found = time.monotonic(), list[float]()
    while (passed_s := time.monotonic() - start_s) < seconds:
        found.append(rss_mb(process.pid))
        client.metrics()
        if len(found) % INFER_EVERY == 0:
            client.infer()
        time.sleep(max(0.0, start_s + len(found) * SAMPLE_S - time.monotonic()))
        if len(found) % 60 == 0:
            print(f"{passed_s / 60:.0f} minutes, {found[-1]:.1f} MB", file=sys.stderr, flush=True)
    return found


def rss_mb(process_id: int) -> float:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """User and system time."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def outcomes(store: Path) -> dict[str, int]:
    """Of the engine's runs, whole calibrations and smaller remedies alike."""
    with Store.open(store, read_only=True) as opened:
        return dict(Counter(run.outcome for run in opened.journal.runs(limit=None)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
