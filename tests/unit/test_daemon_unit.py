"""The example unit of the service manager."""

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pimcal.daemon.notify import Notifier
from pimcal.errors import ConfigError, UsageError

UNIT = Path(__file__).parents[2] / "docs" / "examples" / "pimcal.service"


def service():
    text = UNIT.read_text().replace("\\\n", " ")
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str
    parser.read_string(text)
    return parser["Service"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit():
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_command_has_only_options_that_there_are(pimcal_run):
    known = pimcal_run("daemon", "--help").out
    env, program, command, *options = shlex.split(service()["ExecStart"])
    assert (env, program, command) == ("/usr/bin/env", "pimcal", "daemon")
    assert options[::2] == ["--profile", "--model", "--weights", "--data", "--store"]
    assert all(option in known for option in options[::2])


def test_what_is_wrong_the_next_time_too_is_not_started_again():
    codes = {int(code) for code in service()["RestartPreventExitStatus"].split()}
    assert codes == {UsageError.exit_code, ConfigError.exit_code}


def test_without_a_service_manager_nothing_is_told():
    silent = Notifier({})
    for tell in (silent.ready, silent.reloading, silent.stopping, silent.fed):
        tell()
    assert silent.watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "nonsense"}).watchdog_s is None
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready()


@pytest.mark.parametrize("arguments", [["--help"], ["daemon", "--help"], ["daemon", "status", "--socket", "none"]])
def test_torch_is_not_loaded_for_what_needs_no_device(arguments):
    script = f"import sys\nsys.argv[1:] = {arguments}\nfrom pimcal.cli.app import main\ntry:\n  main()\nfinally:\n  "
    done = subprocess.run(
        [sys.executable, "-c", script + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.endswith("False\n"), done
