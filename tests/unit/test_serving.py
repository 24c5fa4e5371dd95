"""The HTTP interface of a daemon that works: over real connections, on a real (simulated) device."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

pytest.importorskip("starlette", reason="the interface is an extra")
pytest.importorskip("uvicorn", reason="the interface is an extra")

import pimcal
from pimcal.serving.body import LARGEST_ARRAY
from pimcal.store import Store
from pimcal_gaussian.backend import Gaussian

from .exposition_reader import parse
from .recalibration_devices import images, network
from .served import STEADY, TOKEN, npy, read, served

X = images(4, seed=9).numpy()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as made:
        made.until(lambda: made.worker.status.ready)
        yield made


def expected(at_s, record):
    """What the device answers `X` at a time with a record, by another device of the same seed."""
    with pimcal.open_device(pimcal.load_profile("gaussian_mul", overrides=STEADY)) as device:
        net = pimcal.deploy(network(), device)
        device.advance(at_s)
        if record is not None:
            net.apply(record)
        with torch.no_grad():
            return net(torch.from_numpy(X)).numpy()


def records(store):
    with Store.open(store, read_only=True) as opened:
        return [opened.record(generation.id) for generation in opened.generations()]


# --- inference


def test_an_array_goes_in_and_what_the_corrected_network_makes_of_it_comes_out(daemon):
    done = daemon.call("POST", "/infer", X, TOKEN)
    assert done.code == 200, done.body
    assert done.array.dtype == np.float32
    right = expected(daemon.clock.seconds, records(daemon.store)[-1])
    np.testing.assert_allclose(done.array, right, rtol=1e-4, atol=1e-5)
    assert not np.allclose(right, expected(daemon.clock.seconds, None), atol=1e-2)


@pytest.mark.parametrize(
    "array", [X.astype(np.float64), X.astype(">f4"), np.asfortranarray(X), X.astype(np.float32).copy(order="C")]
)
def test_any_layout_of_the_same_numbers_gives_the_same(daemon, array):
    usual, other = daemon.call("POST", "/infer", X, TOKEN), daemon.call("POST", "/infer", array, TOKEN)
    np.testing.assert_array_equal(usual.array, other.array)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no .npy file"),
        (b"hello", "no .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no .npy file"),
        (b"\x93NUMPY\x09\x00" + npy(X)[8:], "no .npy file"),
        (b"\x93NUMPY\x01\x00\x40\x00" + b"(" * 64, "no .npy file"),
        (npy(X)[:-1], "does not fit"),
        (npy(X) + b"\0", "does not fit"),
        (npy(X).replace(b"(4, 2, 8, 8)", b"(4, 2, 8,99)"), "does not fit"),
        (npy(X).replace(b"(4, 2, 8, 8)", b"(-4, 2,8,-8)"), "holds nothing"),
        (npy(np.zeros((0, 2, 8, 8), np.float32)), "holds nothing"),
        (npy(np.zeros(3, "datetime64[s]")), "must hold floating-point numbers or integers"),
        (npy(np.array(["a"])), "must hold floating-point numbers or integers"),
        (npy(np.zeros(2, [("a", "f4")])), "must hold floating-point numbers or integers"),
        (npy(np.zeros((4, 2, 8, 8), complex)), "must hold floating-point numbers or integers"),
        (npy(np.zeros((4, 2, 8, 8), np.uint8)), "[4, 2, 8, 8] and type uint8; it was calibrated with [N, 2, 8, 8]"),
        (npy(np.float32(3)), "does not take an array of shape []"),
        (npy(np.zeros((4, 3, 8, 8), np.float32)), "does not take an array of shape [4, 3, 8, 8] and type float32"),
        (npy(np.full((1, 2, 8, 8), np.nan, np.float32)), "infinite or no numbers"),
        (npy(np.full((1, 2, 8, 8), 1e300)), "infinite or no numbers"),
    ],
)
def test_what_is_no_array_for_this_network_is_refused_in_a_sentence(daemon, body, told):
    done = daemon.call("POST", "/infer", body, TOKEN)
    assert done.code == 400
    assert told in done.json["error"]
    assert "\n" not in done.json["error"]
    assert daemon.call("POST", "/infer", X, TOKEN).code == 200


def test_a_pickle_is_not_opened(daemon, tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath, ("opened",))

    np.save(tmp_path / "harm.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    done = daemon.call("POST", "/infer", (tmp_path / "harm.npy").read_bytes(), TOKEN)
    assert (done.code, done.json["error"]) == (400, "an array must hold floating-point numbers or integers")


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(daemon):
    said = daemon.call("POST", "/infer", bytes(LARGEST_ARRAY + 1), TOKEN)
    assert said.code == 413
    assert str(LARGEST_ARRAY) in said.json["error"]
    in_parts = daemon.call("POST", "/infer", (bytes(2**20) for _ in range(LARGEST_ARRAY // 2**20 + 1)), TOKEN)
    assert in_parts.code == 413
    assert daemon.call("POST", "/api/release", b" " * 5000, TOKEN).code == 413


def test_a_length_that_is_only_claimed_is_refused_before_the_body_comes(daemon):
    with closing(HTTPConnection("127.0.0.1", daemon.port, timeout=60)) as connection:
        connection.putrequest("POST", "/infer")
        for name, value in (("Authorization", f"Bearer {TOKEN}"), ("Expect", "100-continue")):
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()
        assert read(connection.getresponse()).code == 413


# --- while it calibrates


def test_answers_during_a_calibration_are_by_what_was_in_force_before_it_or_after_it(tmp_path):
    with served(tmp_path, token=None, held_out=640) as daemon:
        answers = _asked_during_a_calibration(daemon)
        assert daemon.worker.status.counters.activations == 2
        first, second = records(daemon.store)
    seen = _which([expected(0.0, first), expected(2.0, first), expected(2.0, second)], answers)
    assert set(seen) >= {1, 2}, "none was answered between the batches of the gate"
    assert seen == sorted(seen), "an answer by a calibration that was replaced"


def test_a_candidate_that_is_rejected_answers_nobody(tmp_path):
    with served(tmp_path, token=None, held_out=640) as daemon:
        daemon.until(lambda: daemon.worker.status.ready)
        daemon.judge.falls = True
        answers = _asked_during_a_calibration(daemon)
        assert daemon.worker.status.counters.activations == 1
        first, rejected = records(daemon.store)
    seen = _which([expected(0.0, first), expected(2.0, first), expected(2.0, rejected)], answers)
    assert 1 in seen
    assert 2 not in seen


def _which(steps, answers):
    """Of each answer, which of the possible ones it is."""
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(steps, 2)) > 0.05
    found = []
    for answer in answers:
        near = [place for place, step in enumerate(steps) if np.allclose(step, answer, rtol=1e-4, atol=1e-5)]
        assert len(near) == 1, "an answer by a mixture"
        found += near
    return found


def _asked_during_a_calibration(daemon):
    """What three clients, who ask again and again, get from before it until after it, in the order in which it came."""
    daemon.until(lambda: daemon.worker.status.ready and daemon.worker.status.state == "waiting")
    daemon.clock.seconds = 2.0
    answers, stop, looks = [], threading.Event(), daemon.worker.status.counters.looks

    def client():
        while not stop.is_set():
            answers.append(daemon.call("POST", "/infer", X))

    clients = [threading.Thread(target=client) for _ in range(3)]
    for one in clients:
        one.start()
    daemon.worker.run_now("calibrate")
    daemon.until(lambda: daemon.worker.status.counters.looks > looks and daemon.worker.status.state == "waiting")
    seen = len(answers)
    daemon.until(lambda: len(answers) > seen + 6)
    stop.set()
    for one in clients:
        one.join()
    assert {answer.code for answer in answers} == {200}
    return [answer.array for answer in answers]


# --- who may


@pytest.mark.parametrize("token", [None, "", "wrong-token-of-the-tests", TOKEN + "x", TOKEN[:-1], "\xe4\xf6"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/infer"), ("POST", "/api/run-now"), ("POST", "/api/pause"), ("POST", "/api/nothing"), ("PUT", "/infer")],
)
def test_what_uses_or_changes_something_needs_the_token(daemon, token, method, path):
    done = daemon.call(method, path, X, token)
    assert done.code == 401
    assert done.json == {"error": "not allowed"}
    assert done.headers["WWW-Authenticate"] == "Bearer"


def test_looking_needs_no_token_on_this_machine(daemon):
    for path in ("/healthz", "/readyz", "/metrics", "/api/status", "/api/history"):
        assert daemon.call("GET", path).code == 200


def test_web_pages_are_turned_away(daemon):
    assert daemon.call("GET", "/api/status", Host="evil.example").code == 403
    assert daemon.call("POST", "/infer", X, TOKEN, Origin="http://evil.example").code == 403
    for host in ("localhost", "localhost:80", "127.0.0.1:1", "[::1]:80", "[::1]"):
        assert daemon.call("GET", "/api/status", Host=host).code == 200


def test_commands_reach_the_daemon(daemon):
    looks = daemon.worker.status.counters.looks
    assert daemon.call("POST", "/api/run-now", token=TOKEN).json == {"done": "run-now"}
    daemon.until(lambda: daemon.worker.status.counters.looks > looks)
    assert daemon.call("POST", "/api/pause", b"{}", TOKEN).json == {"done": "pause"}
    daemon.until(lambda: daemon.worker.status.state == "paused")
    assert daemon.call("POST", "/infer", X, TOKEN).code == 200
    assert daemon.call("POST", "/api/resume", token=TOKEN).json == {"done": "resume"}
    daemon.until(lambda: daemon.worker.status.state == "waiting")
    for body, told in (
        (b"[", "JSON object"),
        (b"[1]", "JSON object"),
        (b"{}", "needs `for`"),
        (b'{"for": 3}', "`for`"),
        (b'{"for": "30x"}', "a duration is written with units"),
        (b'{"for": "1h", "until": "noon"}', "release has no field 'until'; known: for"),
    ):
        refused = daemon.call("POST", "/api/release", body, TOKEN)
        assert refused.code == 400
        assert told in refused.json["error"]
    for path, body, told in (
        ("run-now", b'{"calibrate": "yes"}', "run-now: `calibrate` must be true or false, not 'yes'"),
        ("run-now", b'{"do": "stop"}', "run-now has no field 'do'; known: calibrate"),
        ("pause", b'{"for": "1h"}', "pause has no field 'for'; known: none"),
    ):
        refused = daemon.call("POST", f"/api/{path}", body, TOKEN)
        assert (refused.code, refused.json["error"]) == (400, told)


def test_a_command_is_logged_once_and_only_where_it_is_obeyed(daemon, caplog):
    with caplog.at_level("INFO"):
        daemon.call("POST", "/api/release", b'{"for": "30x"}', TOKEN)
        daemon.call("POST", "/api/release", b"{}", TOKEN)
        assert [record.message for record in caplog.records if "release" in record.message] == []
        daemon.call("POST", "/api/resume", token=TOKEN)
        assert [record.message for record in caplog.records if "resume" in record.message] == ["asked for: resume"]


def test_a_clients_mistake_does_not_fill_the_daemons_log(daemon, caplog):
    with caplog.at_level("INFO"):
        assert daemon.call("POST", "/infer", np.zeros((4, 3, 8, 8), np.float32), TOKEN).code == 400
    assert [record.message for record in caplog.records if "failed" in record.message] == []


def test_a_device_that_is_not_there_is_told_to_who_asks_and_again_when_it_is_back(daemon):
    assert daemon.call("POST", "/api/release", b'{"for": "1h"}', TOKEN).code == 200
    daemon.until(lambda: daemon.worker.status.state == "released")
    done = daemon.call("POST", "/infer", X, TOKEN)
    assert (done.code, done.headers["Retry-After"]) == (503, "10")
    ready = daemon.call("GET", "/readyz")
    assert (ready.code, ready.json["error"]) == (503, "the device is released")
    assert daemon.call("GET", "/healthz").code == 200
    daemon.call("POST", "/api/resume", token=TOKEN)
    daemon.until(lambda: daemon.worker.status.ready)
    assert daemon.call("POST", "/infer", X, TOKEN).code == 200
    assert daemon.call("GET", "/readyz").json == {"ready": True}


def test_a_device_that_is_lost_is_told_until_it_is_back(daemon, monkeypatch):
    def fails(self, tile):
        raise OSError("unplugged")

    losses = daemon.worker.status.counters.lost
    with monkeypatch.context() as patched:
        patched.setattr(Gaussian, "effective_weights", fails)
        done = daemon.call("POST", "/infer", X, TOKEN)
        assert (done.code, done.headers["Retry-After"]) == (503, "10")
        assert "unplugged" in done.json["error"]
        daemon.until(lambda: daemon.worker.status.state == "lost")
        assert daemon.call("POST", "/infer", X, TOKEN).code == 503
        assert daemon.call("GET", "/readyz").json == {"error": "the device is lost, and looked for"}
        assert daemon.call("GET", "/healthz").code == 200
        assert _metric(daemon, "pimcal_device_lost") == 1
        assert _metric(daemon, "pimcal_problem", kind="device lost") == 1
    daemon.until(lambda: daemon.worker.status.ready)
    assert daemon.call("POST", "/infer", X, TOKEN).code == 200
    assert _metric(daemon, "pimcal_device_losses_total") == losses + 1


def _metric(daemon, name, **labels):
    found = parse(daemon.call("GET", "/metrics").body.decode())
    return found[name].samples[name, tuple(sorted(labels.items()))]


# --- looking


def test_status_is_that_of_the_socket(daemon):
    found = daemon.call("GET", "/api/status").json
    assert found["device"] == "gaussian-mul-7"
    assert found["ready"] is True
    assert found["generation"] == records_id(daemon)


def records_id(daemon):
    with Store.open(daemon.store, read_only=True) as store:
        return store.generations(states=["active"])[0].id


def test_history_gives_the_newest_events(daemon):
    with Store.open(daemon.store, read_only=True) as store:
        kinds = [event.kind for event in store.journal.history()]
    told = daemon.call("GET", "/api/history?limit=1000").json["events"]
    assert [event["kind"] for event in told][: len(kinds)] == kinds
    assert len(daemon.call("GET", "/api/history?limit=2").json["events"]) == 2
    for limit in ("0", "-1", "1001", "1e3", "x", "", "9" * 5000, "%C2%B2"):
        assert daemon.call("GET", f"/api/history?limit={limit}").code == 400


def test_metrics_follow_the_format_and_say_what_happened(daemon):
    daemon.call("POST", "/infer", X, TOKEN)
    daemon.call("POST", "/infer", b"", TOKEN)
    before = parse(daemon.call("GET", "/metrics").body.decode())
    daemon.clock.seconds += 60.0
    daemon.call("POST", "/infer", X, TOKEN)
    response = daemon.call("GET", "/metrics")
    found = parse(response.body.decode())
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")

    def value(name, which=found, **labels):
        return which[name].samples[name, tuple(sorted(labels.items()))]

    assert value("pimcal_ready") == 1
    assert value("pimcal_state", state="waiting") + value("pimcal_state", state="working") == 1
    assert value("pimcal_device_lost") == 0
    assert "pimcal_problem" not in found
    active = records(daemon.store)[-1].made_with
    assert value("pimcal_metric_value", metric="agreement") == pytest.approx(active.after)
    status = daemon.call("GET", "/api/status").json
    assert (status["metric_name"], status["metric_value"]) == ("agreement", pytest.approx(active.after))
    assert value("pimcal_infer_requests_total", code="200") == 1 + value(
        "pimcal_infer_requests_total", before, code="200"
    )
    assert value("pimcal_infer_requests_total", code="400") >= 1
    assert value("pimcal_mvms_total", purpose="infer") > value("pimcal_mvms_total", before, purpose="infer")
    assert value("pimcal_mvms_total", purpose="upkeep") > 0
    outcomes = found["pimcal_recalibrations_total"].samples
    assert {dict(labels)["outcome"]: count for (_, labels), count in outcomes.items()} == {
        "activated": 1, "kept": 0, "failed": 0,
    }  # fmt: skip
    aged = value("pimcal_generation_age_seconds") - value("pimcal_generation_age_seconds", before)
    assert aged == pytest.approx(60.0)
    assert found["pimcal_infer_seconds"].kind == "histogram"
    served = value("pimcal_infer_requests_total", code="200")
    assert found["pimcal_infer_seconds"].samples["pimcal_infer_seconds_count", ()] == served


def test_no_such_address_or_method_is_told_in_json(daemon):
    assert daemon.call("GET", "/nothing").json == {"error": "Not Found"}
    assert daemon.call("GET", "/infer", token=TOKEN).code == 405
    assert daemon.call("GET", "/api/pause").code == 405


def test_nothing_tells_of_folders_or_of_the_inside(daemon):
    bodies = [daemon.call("GET", path).body for path in ("/api/status", "/api/history", "/metrics", "/readyz", "/x")]
    bodies += [daemon.call("POST", "/infer", body, TOKEN).body for body in (b"x", np.zeros((1, 3, 8, 8), np.float32))]
    for body in bodies:
        assert str(daemon.store.parent).encode() not in body
        assert not re.search(rb"Traceback|\.py\b|/(tmp|home|usr|work)/", body)


# --- clients that are slow, or many


@contextmanager
def slow(daemon, count, content):
    """Connections that send so much, and then nothing more."""
    clients = [socket.create_connection(("127.0.0.1", daemon.port), timeout=60) for _ in range(count)]
    try:
        for client in clients:
            client.sendall(content)
        yield clients
    finally:
        for client in clients:
            client.close()


def test_a_slow_client_holds_up_nobody(daemon):
    head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
    with slow(daemon, 5, f"{head}\r\nhalf".encode()), slow(daemon, 5, head.encode()), slow(daemon, 5, b""):
        for _ in range(3):
            assert daemon.call("POST", "/infer", X, TOKEN).code == 200
        assert daemon.call("GET", "/healthz").code == 200


def test_too_many_requests_at_a_time_are_told_to_come_again(daemon):
    from pimcal.serving.inference import MOST

    head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n"
    with slow(daemon, MOST, head.encode()):
        daemon.until(lambda: daemon.call("POST", "/infer", X, TOKEN).code == 429)
        refused = daemon.call("POST", "/infer", X, TOKEN)
        assert (refused.code, refused.headers["Retry-After"]) == (429, "1")
        assert daemon.call("GET", "/healthz").code == 200
    daemon.until(lambda: daemon.call("POST", "/infer", X, TOKEN).code == 200)


def test_arrays_of_many_requests_never_take_more_than_a_share_of_memory(monkeypatch):
    largest = 100_000  # else a busy machine needs longer than anybody is waited for
    monkeypatch.setattr("pimcal.serving.app.LARGEST_ARRAY", largest)
    monkeypatch.setattr("pimcal.serving.app.MOST_AT_A_TIME", 2 * largest)
    with TemporaryDirectory() as folder, served(Path(folder), token=None) as daemon:
        daemon.until(lambda: daemon.worker.status.ready)
        sent = largest - 1000
        head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {largest}\r\n\r\n".encode()
        with slow(daemon, 2, head + bytes(sent)):
            daemon.until(lambda: daemon.call("POST", "/infer", X).code == 503)
            refused = daemon.call("POST", "/infer", X)
            assert (refused.code, refused.headers["Retry-After"]) == (503, "10")
            assert "other requests" in refused.json["error"]
            assert daemon.call("GET", "/healthz").code == 200
        daemon.until(lambda: daemon.call("POST", "/infer", X).code == 200)
        with slow(daemon, 5, head):  # what is only claimed takes nothing
            assert daemon.call("POST", "/infer", X).code == 200


def test_connections_beyond_the_limit_are_hung_up_and_the_daemon_goes_on(daemon):
    from pimcal.serving.connection import MOST

    with slow(daemon, MOST, b"") as clients:
        daemon.until(lambda: len(daemon.server._server.server_state.connections) >= MOST)
        one_more = socket.create_connection(("127.0.0.1", daemon.port), timeout=60)
        with closing(one_more), pytest.raises(ConnectionResetError):
            _hung_up(one_more)
        assert clients
        assert daemon.worker.status.ready
    daemon.until(lambda: not daemon.server._server.server_state.connections)
    assert daemon.call("GET", "/healthz").code == 200


def _hung_up(client):
    if not client.recv(1):
        raise ConnectionResetError


def test_what_is_no_http_is_answered_and_forgotten(daemon):
    for content in (b"\x00\xff\r\n\r\n", b"hello\r\n\r\n", b"POST /infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        with slow(daemon, 1, content) as (client,):
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert daemon.call("GET", "/healthz").code == 200
