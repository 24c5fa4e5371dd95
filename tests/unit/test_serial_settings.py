"""The `device:` part of a board's profile, and locks and ports that go with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pimcal.errors import ConfigError, DeviceBusyError, DeviceUnavailableError
from pimcal.profile import load_profile
from pimcal_serial.lock import BoardLock
from pimcal_serial.settings import SerialSettings
from pimcal_serial.transport import lock_name, open_port, resolve_port

HEAD = "schema: pimcal/1\nbackend: serial\n"


def profile_of(folder: Path, device: str) -> SerialSettings:
    path = folder / "p.yaml"
    path.write_text(f"{HEAD}{device}\n")
    settings = load_profile(str(path)).settings
    assert isinstance(settings, SerialSettings)
    return settings


@pytest.mark.parametrize(
    "port", ["/dev/ttyUSB0", "usb:A50285BI", "socket://lab:7000", "rfc2217://10.0.0.2:4000", "sim:", "socket://[::1]:9"]
)
def test_every_kind_of_port_is_accepted(tmp_path: Path, port: str) -> None:
    assert profile_of(tmp_path, f'device: {{port: "{port}"}}').port == port


@pytest.mark.parametrize(
    ("port", "told"),
    [
        ("ttyUSB0", "is none of: a device path"),
        ("COM3", "is none of: a device path"),
        ("usb:", "is none of"),
        ("socket://lab", "must be socket://host:port"),
        ("socket://lab:port", "must be socket://host:port"),
        ("http://lab:80", "must be socket://host:port"),
    ],
)
def test_what_is_no_port_is_refused_with_what_would_be(tmp_path: Path, port: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        profile_of(tmp_path, f'device: {{port: "{port}"}}')


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("device: {}", "device.port: needed"),
        ("device: {prot: 'sim:'}", "did you mean 'device.port'"),
        ("device: {port: 'sim:', baud: 0}", "device.baud"),
        ("device: {port: 'sim:', baud: '9600'}", "device.baud"),
        ("device: {port: 'sim:', connect_s: -1}", "device.connect_s"),
        ("device: {port: /dev/ttyUSB0, simulator: {tiles: 2}}", "simulator has no effect"),
        ("device: {port: 'sim:', simulator: {tils: 2}}", "did you mean 'device.simulator.tiles'"),
        ("device: {port: 'sim:'}\ntiles: {rows: 1000}", "tiles.rows: the virtual board has 256"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, device: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        profile_of(tmp_path, device)


def test_a_usb_serial_number_that_is_not_plugged_in_is_named() -> None:
    with pytest.raises(DeviceUnavailableError, match="no USB serial port has the serial number PIM-0815"):
        resolve_port("usb:PIM-0815")


def test_a_port_that_does_not_exist_is_named() -> None:
    with pytest.raises(DeviceUnavailableError, match="there is no port /dev/no-such-port"):
        open_port("/dev/no-such-port", 115200, 1.0)


def test_a_connection_that_is_refused_is_told() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"cannot open socket://127\.0\.0\.1:1"):
        open_port("socket://127.0.0.1:1", 115200, 1.0)


def test_a_file_that_is_no_terminal_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceUnavailableError, match="file is no serial port"):
        open_port(str(tmp_path / "file"), 115200, 1.0)


def test_links_to_one_port_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "tty").write_text("")
    (tmp_path / "by-id").symlink_to(tmp_path / "tty")
    assert lock_name(str(tmp_path / "by-id")) == lock_name(str(tmp_path / "tty"))


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    held = BoardLock("/dev/ttyX", tmp_path)
    script = (
        "import sys, pathlib; from pimcal_serial.lock import BoardLock; from pimcal.errors import PimcalError\n"
        "try: BoardLock('/dev/ttyX', pathlib.Path(sys.argv[1]))\n"
        "except PimcalError as error: print(error); sys.exit(error.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    import os

    assert done.returncode == DeviceBusyError.exit_code
    assert f"/dev/ttyX is in use by process {os.getpid()} (" in done.stdout
    held.release()
    BoardLock("/dev/ttyX", tmp_path).release()


def test_two_ports_do_not_lock_one_another(tmp_path: Path) -> None:
    first, second = BoardLock("/dev/ttyX", tmp_path), BoardLock("/dev/ttyY", tmp_path)
    first.release()
    second.release()
