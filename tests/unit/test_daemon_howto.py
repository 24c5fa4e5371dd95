"""The commands of docs/how-to/operate.md, with a daemon that was started as it says."""

import re
import shlex
from pathlib import Path

import pytest

from pimcal.daemon.client import ask
from pimcal.errors import DeviceUnavailableError

from .board_peers import Hosts

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "operate.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^\$ (pimcal .*)$", PAGE, re.MULTILINE)]


@pytest.fixture
def daemon(nursery, tmp_path):
    pytest.importorskip("sklearn", reason="the page's network classifies scikit-learn's digits")
    folder = tmp_path / "daemon"
    folder.mkdir()
    hosts = Hosts(nursery, folder)
    (name, content) = re.search(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL).groups()
    (hosts.folder / name).write_text(content)
    start, *_ = COMMANDS
    assert start[:2] == ["daemon", "--profile"]
    hosts.start(*start)
    return hosts


def test_commands_of_the_page_run_in_order(daemon, pimcal_run, monkeypatch):
    monkeypatch.chdir(daemon.folder)
    while not ready(daemon):
        pass
    for command in COMMANDS[1:]:
        done = pimcal_run(*command)
        assert done.code == 0, (command, done.err)
        if command[:2] == ["daemon", "stop"]:
            assert daemon.wait().code == 0


def ready(daemon):
    try:
        return ask(daemon.folder / "store" / "daemon.sock", {"do": "status"})["counters"]["activations"] > 1
    except DeviceUnavailableError:
        return False


def test_every_alert_and_command_of_the_page_is_one_that_there_is():
    from pimcal import daemon, recalibration

    files = [file for package in (daemon, recalibration) for file in Path(package.__file__).parent.glob("*.py")]
    source = "".join(file.read_text() for file in files)
    alerts = re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.MULTILINE)
    assert {"device lost", "no remedy", "dead tiles", "store"} <= set(alerts)
    for alert in alerts:
        assert f'"{alert}"' in source
