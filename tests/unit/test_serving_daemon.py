"""`pimcal daemon --http` as a process: started, used, stopped; and the commands of docs/how-to/serve.md."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the interface is an extra")
pytest.importorskip("uvicorn", reason="the interface is an extra")

from .served import TOKEN, npy, read

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
X = np.random.default_rng(0).standard_normal((3, 1, 6, 6)).astype(np.float32)


@pytest.fixture
def port():
    """One that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def token(hosts):
    path = hosts.beside / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


@pytest.fixture
def waiting(hosts, lab):
    """A file with a network that waits two seconds before it takes a batch of 7 to the device."""
    path = hosts.beside / "waiting.py"
    path.write_text(
        textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        import torch
        from safetensors.torch import load_file
        sys.path.insert(0, {str(lab.folder)!r})
        from network import net

        class Wait(torch.nn.Module):
            def forward(self, x):
                if len(x) == 7:
                    Path({str(hosts.beside / "waits")!r}).touch()
                    time.sleep(2)
                return x

        def slow():
            model = net()
            model.load_state_dict(load_file({lab.weights!r}))
            return torch.nn.Sequential(Wait(), model.eval())
        """)
    )
    return f"{path}:slow"


def call(port, method, path, body=None, token=None):
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, body, headers)
        return read(connection.getresponse())


def test_others_use_the_board_while_the_daemon_owns_it(daemon, port, token):
    daemon.started("--http", port, "--token-file", token)
    daemon.until(lambda status: status["ready"])
    assert call(port, "POST", "/infer", npy(X), TOKEN).array.shape == (3, 4)
    assert call(port, "POST", "/infer", npy(X)).code == 401
    assert call(port, "GET", "/api/status").json["process"] == daemon.status["process"]
    assert call(port, "POST", "/api/pause", token=TOKEN).code == 200
    daemon.until(lambda status: status["paused"])
    done = daemon.stopped()
    assert done.code == 0, done.err
    assert f"serving at http://127.0.0.1:{port}" in done.err
    with pytest.raises(ConnectionRefusedError):
        call(port, "GET", "/healthz")


def test_a_reload_that_fails_is_an_alert_like_all_others(daemon, port):
    daemon.started("--http", port)
    daemon.until(lambda status: status["ready"])
    assert "pimcal_problem" not in call(port, "GET", "/metrics").body.decode()
    daemon.write({"every": "soon"})
    daemon.kill(signal.SIGHUP)
    daemon.until(lambda status: "configuration" in status["problems"])
    assert 'pimcal_problem{kind="configuration"} 1\n' in call(port, "GET", "/metrics").body.decode()
    (alert,) = [one for one in call(port, "GET", "/api/history").json["events"] if one["kind"] == "alert"]
    assert alert["details"] == {"kind": "configuration"}
    assert alert["device"] == "gaussian-mul-7"
    assert "a duration is written with units" in alert["reason"]
    daemon.write()
    daemon.kill(signal.SIGHUP)
    daemon.until(lambda status: not status["problems"])
    assert "pimcal_problem" not in call(port, "GET", "/metrics").body.decode()
    assert daemon.stopped().code == 0


def test_sigterm_lets_a_request_that_runs_come_to_its_end(daemon, hosts, port, waiting):
    daemon.started("--http", port, model=waiting)
    daemon.until(lambda status: status["ready"])
    answers = []
    body = npy(np.zeros((7, 1, 6, 6), np.float32))
    client = threading.Thread(target=lambda: answers.append(call(port, "POST", "/infer", body)))
    client.start()
    daemon.until(lambda status: (hosts.beside / "waits").exists())
    daemon.kill(signal.SIGTERM)
    client.join()
    assert answers[0].code == 200, answers[0].body
    assert answers[0].array.shape == (7, 4)
    assert daemon.wait().code == 0


def test_a_client_that_never_ends_its_request_does_not_keep_the_daemon(daemon, port):
    daemon.started("--http", port)
    daemon.until(lambda status: status["ready"])
    with closing(socket.create_connection(("127.0.0.1", port))) as silent, closing(socket.socket()) as mute:
        silent.sendall(b"POST /api/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n")
        mute.connect(("127.0.0.1", port))
        done = daemon.stopped()
    assert done.code == 0, done.err


def test_a_port_that_is_taken_ends_the_start(daemon):
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        done = daemon.start("--http", holder.getsockname()[1]).wait()
    assert done.code == 75
    assert "another program listens at http://127.0.0.1:" in done.err
    assert not daemon.socket.exists()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--http", "0.0.0.0:8787"], 78, "can be reached from other machines, so --token-file FILE must be given"),
        (["--http", "8787", "--token-file", "nowhere"], 78, "cannot read the token in nowhere"),
        (["--http", "nonsense"], 2, "write PORT or HOST:PORT"),
        (["--http", "127.0.0.1:99999"], 2, "write PORT or HOST:PORT"),
        (["--token-file", "nowhere"], 2, "--token-file is for --http"),
    ],
)
def test_an_interface_that_cannot_be_is_refused_at_once(daemon, options, code, told):
    done = daemon.start(*options).wait()
    assert done.code == code, done.err
    assert told in done.err
    assert not daemon.store.exists()


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_a_library_that_is_missing_is_named_with_its_extra(lab, pimcal_run, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    done = pimcal_run("daemon", *lab.on(), "--store", "store", "--http", "0")
    assert done.code == 78
    assert f"--http needs {library}" in done.err
    assert "pip install 'pimcal[serve]'" in done.err


# --- the how-to


def page(name):
    return (HOW_TO / name).read_text()


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
def test_commands_and_program_of_the_page_run(daemon, hosts, port, token):
    pytest.importorskip("sklearn", reason="the page's network classifies scikit-learn's digits")
    text = page("serve.md").replace("8787", str(port))
    commands = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    (name, profile) = re.search(r"^```yaml\n# (\S+)\n(.*?)^```", page("operate.md"), re.MULTILINE | re.DOTALL).groups()
    (hosts.folder / name).write_text(profile)
    shutil.copy(token, hosts.folder / "token")
    (start,) = (command.split() for command in commands if command.startswith("pimcal"))
    hosts.start(*start[1:])
    daemon.socket = hosts.folder / "store" / "daemon.sock"
    daemon.until(lambda status: status["ready"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "no_proxy": "*"}
    (program,) = blocks("python", text)
    run = {"cwd": hosts.folder, "capture_output": True, "text": True, "timeout": 240, "env": environment}
    done = subprocess.run([sys.executable, "-c", program], **run)
    assert re.fullmatch(r"\d+% right\n", done.stdout), done.stderr
    for command in [command for command in commands if command.startswith("curl")]:
        done = subprocess.run(["bash", "-c", command.replace("curl -s", "curl -sS --fail")], **run)
        assert done.returncode == 0, (command, done.stderr)
    assert daemon.stopped().code == 0


def test_every_metric_of_the_page_is_one_that_there_is():
    from pimcal.serving import measured

    source = Path(measured.__file__).read_text()
    names = set(re.findall(r"pimcal_[a-z_]+[a-z]", page("serve.md"))) - {"pimcal_demo"}
    assert len(names) > 6
    for name in names:
        assert f'"{name}"' in source, name
