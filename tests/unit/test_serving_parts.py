"""The parts of the HTTP interface that need no connection: addresses, tokens, arrays, the metrics' format."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pimcal.errors import ConfigError, DataError, DeviceBusyError, DeviceUnavailableError, UsageError
from pimcal.serving.access import refused
from pimcal.serving.binding import Binding, listen, read_binding
from pimcal.serving.exposition import Histogram, family
from pimcal.serving.inference import MOST, Inference
from pimcal.serving.npy import read_npy, write_npy
from pimcal.serving.room import Room
from pimcal.serving.told import without_folders

from .exposition_reader import parse

TOKEN = "0123456789abcdef"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


# --- where it listens


def test_a_port_alone_is_one_of_this_machine_only():
    assert read_binding("8787", None) == Binding("127.0.0.1", 8787, None)
    assert read_binding("[::1]:80", None) == Binding("::1", 80, None)
    assert read_binding("127.0.0.2:0", None).local


@pytest.mark.parametrize("address", ["0.0.0.0:8787", "[::]:8787", "192.0.2.1:8787"])
def test_an_address_that_others_reach_needs_a_token(address, token_file):
    with pytest.raises(ConfigError, match="--token-file") as caught:
        read_binding(address, None)
    assert caught.value.exit_code == 78
    assert read_binding(address, token_file).token == TOKEN


@pytest.mark.parametrize("address", ["", "http", ":80", "localhost:", "127.0.0.1:65536", "80:localhost", "-1", "²"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="write PORT or HOST:PORT"):
        read_binding(address, None)


@pytest.mark.parametrize(
    "content", ["", "short", "has a space in its middle", "ünïcödé-is-not-ascii-either", "a" * 16 + "\x00"]
)
def test_a_token_that_cannot_be_used_is_refused_without_being_shown(token_file, content):
    token_file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_binding("8787", token_file)
    assert "openssl rand -hex 32" in str(caught.value)
    assert not content or content not in str(caught.value)


def test_a_token_that_everybody_can_read_is_refused(token_file):
    token_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_binding("8787", token_file)
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_binding("8787", token_file.parent / "nowhere")


def test_a_port_that_is_taken_is_told():
    with closing(listen(Binding("127.0.0.1", 0, None))) as first:
        taken = Binding("127.0.0.1", first.getsockname()[1], None)
        with pytest.raises(
            DeviceBusyError, match=f"another program listens at http://127.0.0.1:{taken.port}"
        ) as caught:
            listen(taken)
    assert caught.value.exit_code == 75
    with pytest.raises(ConfigError, match="cannot listen at http://192"):
        listen(Binding("192.0.2.1", 0, None))


# --- who may

LOCAL, OPEN = Binding("127.0.0.1", 1, TOKEN), Binding("192.0.2.1", 1, TOKEN)
HERE = {"host": "localhost:1"}
RIGHT = HERE | {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("path", ["/readyz", "/metrics", "/api/status", "/api/history", "/infer", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_from_elsewhere_all_but_health_needs_the_token(method, path):
    assert refused(OPEN, method, path, HERE) == 401
    assert refused(OPEN, method, path, RIGHT) is None
    assert refused(OPEN, "GET", "/healthz", HERE) is None


def test_without_a_token_nothing_can_be_changed_but_the_board_may_be_used():
    free = Binding("127.0.0.1", 1, None)
    assert refused(free, "POST", "/infer", HERE) is None
    for given_token in (
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer None"},
        {"authorization": "Bearer"},
    ):
        assert refused(free, "POST", "/api/pause", HERE | given_token) == 401


@given(st.text(st.characters(max_codepoint=255)))
def test_only_the_token_is_the_token(given_token):
    assume(given_token.strip() != TOKEN)
    headers = HERE | {"authorization": f"Bearer {given_token}"}
    assert refused(LOCAL, "POST", "/api/pause", headers) == 401
    assert refused(LOCAL, "POST", "/api/pause", HERE | {"authorization": f"bearer {TOKEN}"}) is None


# --- arrays

NUMBERS = st.one_of(arrays.floating_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes())
SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, max_side=4)


@given(arrays.arrays(NUMBERS, SHAPES), st.booleans())
def test_arrays_come_through_as_they_are(array, by_columns):
    stream = io.BytesIO()
    np.save(stream, np.array(array, order="F" if by_columns else "C"))
    found = read_npy(stream.getvalue())
    np.testing.assert_array_equal(found, array, strict=False)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(np.load(io.BytesIO(write_npy(found))), found)


@given(st.binary(max_size=200), st.integers(0, 127), st.binary(max_size=8))
def test_any_bytes_are_an_array_or_refused(content, place, change):
    valid = write_npy(np.zeros((3, 4), np.float32))
    for body in (content, b"\x93NUMPY\x01\x00" + content, valid[:place] + change + valid[place + len(change) :]):
        try:
            found = read_npy(body)
        except DataError:
            continue
        assert found.dtype.kind in "fiu"
        assert found.nbytes <= len(body)


def test_a_claimed_size_is_not_allocated():
    content = write_npy(np.zeros((10, 10), np.float32))
    for shape in (b"(99999999,)", b"(9999999999999999999,)"):
        claimed = content.replace(b"(10, 10), }" + b" " * (len(shape) - 8), shape + b", }")
        assert shape in claimed
        with pytest.raises(DataError, match="does not fit"):
            read_npy(claimed)


# --- requests


def test_requests_go_to_the_device_one_at_a_time_and_no_more_than_some_wait():
    given_work, release = [], threading.Event()

    def submit(work):
        given_work.append(work)
        future = Future()
        threading.Thread(
            target=lambda: (release.wait(60), future.set_exception(DeviceUnavailableError("gone")))
        ).start()
        return future

    async def ask_all():
        inference = Inference(submit, None)
        for _ in range(MOST):
            inference.enter()
        with pytest.raises(DeviceBusyError, match="try again later"):
            inference.enter()
        asked = [asyncio.create_task(inference.answer(np.zeros((1, 2), np.float32))) for _ in range(3)]
        await asyncio.sleep(0.05)
        waiting = len(given_work)
        release.set()
        return waiting, await asyncio.gather(*asked, return_exceptions=True)

    waiting, answers = asyncio.run(ask_all())
    assert waiting == 1
    assert [str(answer) for answer in answers] == ["gone"] * 3


def test_a_device_that_does_not_come_free_in_time_is_unavailable():
    future: Future = Future()

    async def ask_one():
        await Inference(lambda work: future, None, patience_s=0.01).answer(np.zeros((1, 2), np.float32))

    with pytest.raises(DeviceUnavailableError, match="may be calibrating"):
        asyncio.run(ask_one())
    assert future.cancelled()


def test_draining_waits_for_what_is_in_work_and_takes_nothing_more():
    async def drain():
        inference, order = Inference(lambda work: Future(), None), []
        inference.enter()
        draining = asyncio.create_task(inference.drain(60))
        draining.add_done_callback(lambda _: order.append("drained"))
        await asyncio.sleep(0)
        with pytest.raises(DeviceUnavailableError, match="stopping"):
            inference.enter()
        order.append("left")
        inference.leave()
        await draining
        return order

    assert asyncio.run(drain()) == ["left", "drained"]


def test_memory_for_bodies_is_given_back_however_a_request_ends():
    room = Room(10)
    with room.share() as take:
        take(7)
        take(3)
        with room.share() as other, pytest.raises(DeviceUnavailableError, match="other requests"):
            other(1)
    with pytest.raises(DeviceUnavailableError), room.share() as take:  # noqa: PT012
        take(10)
        take(1)
    with room.share() as take:
        take(10)


# --- metrics


@given(st.text(max_size=30), st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30), st.floats())
def test_any_text_and_number_can_be_a_metric(label, about, value):
    assume(not set(label) & {"\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"})
    text = "\n".join(family("some_name", "gauge", about, [({"what": label}, value)])) + "\n"
    found = parse(text)["some_name"].samples["some_name", (("what", label),)]
    assert found == value or (found != found and value != value)


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_is_at_most_its_bounds(values):
    histogram = Histogram("some_seconds", "Something.")
    for value in values:
        histogram.observe(value)
    found = parse("\n".join(histogram.lines()) + "\n")["some_seconds"].samples
    for (name, labels), count in found.items():
        if name == "some_seconds_bucket":
            assert count == sum(value <= float(dict(labels)["le"]) for value in values)
    assert found["some_seconds_sum", ()] == pytest.approx(sum(values))


# --- what may leave the machine


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/etc/pimcal/daemon.yaml:13:5: wrong", "daemon.yaml:13:5: wrong"),
        ("store /var/lib/pimcal is full", "store pimcal is full"),
        ("it failed (~/net.py:3)", "it failed (net.py:3)"),
        ("see '../../secret/x'", "see 'x'"),
        ("12 MVM/s at http://127.0.0.1:80/x", "12 MVM/s at http://127.0.0.1:80/x"),
        ("metric a / b", "metric a / b"),
    ],
)
def test_messages_keep_names_of_files_and_lose_those_of_folders(message, told):
    assert without_folders({"a": [message], "b": 3}) == {"a": [told], "b": 3}


def test_what_is_imported_without_the_extra_does_not_need_it():
    script = "import sys, pimcal.serving.binding, pimcal.cli.daemon; print({'starlette', 'uvicorn'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
