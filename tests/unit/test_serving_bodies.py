"""Headers and bodies of requests that are wrong: each is a 400 with the reason, and the next request is served."""

from __future__ import annotations

import json
import random
import socket
from contextlib import closing
from email.parser import BytesParser

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the interface is an extra")
pytest.importorskip("uvicorn", reason="the interface is an extra")

from pimcal.errors import DataError
from pimcal.serving.npy import MOST_AXES, read_npy

from .recalibration_devices import images
from .served import TOKEN, npy, served

X = images(4, seed=9).numpy()
SIZE = X.size * X.itemsize


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as made:
        made.until(lambda: made.worker.status.ready)
        yield made


def header(shape: str, descr: str = "'<f4'", *, order: str = "False", more: str = "", version: int = 1) -> bytes:
    """A .npy file's header with such texts in it."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


BODY = X.tobytes()
RIGHT = "(4, 2, 8, 8)"

WRONG = {
    "truth values": (header("(4, 2, 8, 8, True)") + BODY, "holds what is no number"),
    "only a truth value": (header("(True,)", "'<f4'") + b"\0" * 4, "holds what is no number"),
    "33 axes": (header(str((4, 2, 8, 8) + (1,) * 29)) + BODY, "an array of 33 axes; at most 32 are taken"),
    "65 axes": (header(str((4, 2, 8, 8) + (1,) * 61)) + BODY, "an array of 65 axes; at most 32 are taken"),
    "1000 axes": (header(str((4, 2, 8, 8) + (1,) * 996)) + BODY, "an array of 1000 axes; at most 32 are taken"),
    "negative": (header("(-4, -2, 8, 8)") + BODY, "holds nothing"),
    "zero": (header("(0, 2, 8, 8)"), "holds nothing"),
    "an overflowing product": (header(f"({2**62}, 4, 8, 8)") + BODY, "does not fit"),
    "a size beyond 64 bits": (header(f"({2**70}, 1)") + BODY, "does not fit"),
    "fractions": (header("(4.0, 2, 8, 8)") + BODY, "no .npy file"),
    "a list": (header("[4, 2, 8, 8]") + BODY, "no .npy file"),
    "a number": (header("512") + BODY, "no .npy file"),
    "no shape": (header("None") + BODY, "no .npy file"),
    "an unknown type": (header(RIGHT, "'<q9'") + BODY, "no .npy file"),
    "no type": (header(RIGHT, "None") + BODY, "no .npy file"),
    "objects": (header(RIGHT, "'|O'") + BODY, "must hold floating-point numbers or integers"),
    "a type of no size": (header(RIGHT, "'|V0'") + BODY, "must hold"),
    "an array as type": (header("(4,)", "('<f4', (2, 8, 8))") + BODY, "must hold"),
    "records": (header(RIGHT, "[('a', '<f4')]") + BODY, "must hold"),
    "an unknown order": (header(RIGHT, order="3") + BODY, "no .npy file"),
    "one key more": (header(RIGHT, more=", 'colour': 1") + BODY, "no .npy file"),
    "a key twice": (header("(1, 2)", more=f", 'shape': {RIGHT}") + BODY, "says something twice"),
    "another key twice": (header(RIGHT, more=", 'descr': '<f4'") + BODY, "says something twice"),
    "deep": (header("(" * 2000 + ")" * 2000) + BODY, "no .npy file"),
    "a long header": (header(RIGHT, more=" " * 70_000, version=2) + BODY, "no .npy file"),
    "a header that is no text": (header(RIGHT, more=", '\xff': 1") + BODY, "no .npy file"),
    "version 3": (header(RIGHT, version=3) + BODY, "no .npy file"),
    "a byte more": (header(RIGHT) + BODY + b"\0", "does not fit"),
    "a byte less": (header(RIGHT) + BODY[:-1], "does not fit"),
    "two arrays": (npy(X) + npy(X), "does not fit"),
    "a zip of arrays": (b"PK\x03\x04" + BODY, "no .npy file"),
    "a header that is cut": (npy(X)[:40], "no .npy file"),
    "the mark alone": (b"\x93NUMPY", "no .npy file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_array_is_a_400_with_the_reason(name, daemon):
    body, told = WRONG[name]
    done = daemon.call("POST", "/infer", body, TOKEN)
    assert (done.code, told in done.json["error"]) == (400, True), done.body
    assert done.json["error"].isprintable()
    assert len(done.json["error"]) < 400


def test_as_many_axes_as_are_taken_are_read():
    assert read_npy(header(str((1,) * MOST_AXES)) + b"\0" * 4).ndim == MOST_AXES


@pytest.mark.parametrize("seed", range(300))
def test_any_edit_of_an_array_is_read_as_numbers_or_refused(seed):
    generator = random.Random(seed)
    content = bytearray(npy(X[:1, :1, :2, :2].copy()))
    pieces = [b"True", b"-1", b"(", b")", b"'", b",", b"0", b"9" * 30, b"\xff", b"None", b"1j", b"{", b"'shape'", b"O"]
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(content))
        if generator.random() < 0.5:
            content[place] = generator.randrange(256)
        else:
            piece = generator.choice(pieces)
            content[place : place + generator.choice((0, len(piece)))] = piece
    try:
        found = read_npy(bytes(content))
    except DataError as error:
        assert str(error)
    else:
        assert found.dtype.kind in "fiu"
        assert found.nbytes <= len(content)


def test_whole_numbers_that_the_networks_type_cannot_hold_are_refused_not_wrapped():
    import torch

    from pimcal.serving.inference import Example, Inference

    inference = Inference(lambda work: pytest.fail("it was sent"), Example((2,), torch.uint8))
    for array in (np.array([[256, 1]]), np.array([[-1, 1]]), np.array([[2**63, 1]], np.uint64)):
        with pytest.raises(DataError, match="cannot hold"):
            inference._inputs(array)
    assert inference._inputs(np.array([[255, 1]], np.int16)).tolist() == [[255, 1]]


# --- lengths


def said(daemon, head: list[str], *parts: bytes, end: bool = False):
    """What is answered to bytes that no well-behaved client sends: code, JSON."""
    lines = [f"POST {head[0]} HTTP/1.1", f"Host: 127.0.0.1:{daemon.port}", f"Authorization: Bearer {TOKEN}", *head[1:]]
    with closing(socket.create_connection(("127.0.0.1", daemon.port), timeout=60)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + b"".join(parts))
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.partition(b"\r\n\r\n")
    is_json = BytesParser().parsebytes(headers).get_content_type() == "application/json"
    return int(status.split()[1]), json.loads(body) if is_json else body


def chunked(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


@pytest.mark.parametrize("path", ["/infer", "/api/run-now"])
def test_a_body_that_is_longer_than_its_header_says_is_refused(path, daemon):
    body = npy(X) if path == "/infer" else b"{}"
    code, found = said(daemon, [path, f"Content-Length: {len(body)}"], body, b"more")
    assert (code, found) == (400, {"error": "more came than the body's header says"})


@pytest.mark.parametrize("path", ["/infer", "/api/run-now"])
def test_a_body_that_is_shorter_than_its_header_says_is_refused(path, daemon):
    body = npy(X) if path == "/infer" else b"{}"
    code, found = said(daemon, [path, f"Content-Length: {len(body) + 10}"], body, end=True)
    assert code == 400
    assert found == {"error": f"the body is cut off after {len(body)} bytes; its header says more"}


def test_a_chunked_body_that_is_cut_is_refused(daemon):
    code, found = said(daemon, ["/infer", "Transfer-Encoding: chunked"], chunked(npy(X))[:-5], end=True)
    assert code == 400
    assert "is cut off" in found["error"]


@pytest.mark.parametrize("length", [1, len(npy(X)), len(npy(X)) + 1])
def test_two_lengths_that_may_contradict_each_other_are_refused(length, daemon):
    head = ["/infer", f"Content-Length: {length}", "Transfer-Encoding: chunked"]
    code, found = said(daemon, head, chunked(npy(X)))
    assert (code, "not both" in found["error"]) == (400, True)


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "12, 13", "9" * 400])
def test_a_length_that_is_none_is_refused(length, daemon):
    code, _ = said(daemon, ["/infer", f"Content-Length: {length}"], npy(X), end=True)
    assert code in (400, 413)


def test_a_client_that_only_stops_sending_gets_its_answer(daemon):
    body = npy(X)
    code, found = said(daemon, ["/infer", f"Content-Length: {len(body)}", "Connection: close"], body, end=True)
    assert code == 200
    np.testing.assert_array_equal(read_npy(found), daemon.call("POST", "/infer", X, TOKEN).array)
    code, _ = said(daemon, ["/infer", f"Content-Length: {len(body)}"], body, b"\r\n")  # as old clients send it
    assert code == 200


# --- commands


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "a JSON object"),
        (b"[]", "a request is a JSON object"),
        (b"null", "a request is a JSON object"),
        (b'"\xff"', "in UTF-8"),
        ('{"for": "1s"}'.encode("utf-16"), "in UTF-8"),
        (b'{"for": "1s", "for": "30d"}', "a request has each name once"),
        (b'{"for": NaN}', "NaN is no number in JSON"),
        (b'{"for": Infinity}', "Infinity is no number in JSON"),
        (b'{"a":' * 700, "a JSON object"),
        (b"[" * 4000, "a JSON object"),
        (b'{"for": 1}', 'must be a text, such as "30m"'),
        (b'{"for": true}', 'must be a text, such as "30m"'),
        (b'{"for": "1s", "colour": 1}', "has no field 'colour'"),
        (b'{"for": "\\ud800"}', "duration"),
        (b'{"for": ' + b"9" * 4000 + b"}", "error"),
    ],
)
def test_a_malformed_command_is_a_400_with_the_reason(body, told, daemon):
    done = daemon.call("POST", "/api/release", body, TOKEN)
    assert done.code == 400, done.body
    assert told in done.json["error"] or told == "error"
    assert daemon.worker.status.state != "released"
