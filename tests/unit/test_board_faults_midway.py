"""What becomes of a calibration whose board, cable or process goes away in the middle: end to end.

Real processes on both sides, and a cable between them that is pulled when the host has sent so many frames.
"""

import json
import os
import signal

import numpy as np
import pytest
import torch

from pimcal.record import Record
from pimcal_serial.frames import Frame, MessageType, encode_frame

from .board_peers import PEERS, Hosts

NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    convolution = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(64, 80), nn.BatchNorm1d(80), nn.ReLU(), nn.Linear(80, 4))
"""

PROGRAMMING, PRODUCTS = {MessageType.PROGRAM}, {MessageType.MVM, MessageType.MVM_GATHER}
MOMENTS = ("programming", "calibration", "judgement")
FORMER = b"what was here before"


def start_calibration(hosts, port, **device):
    (hosts.beside / "network.py").write_text(NETWORK)
    images = np.random.default_rng(0).standard_normal((12, 1, 6, 6)).astype(np.float32)
    np.savez(hosts.beside / "images.npz", images=images)
    subject = ("--model", "../network.py:net", "--data", "npz:../images.npz")
    options = ("--images", 6, "--batch-size", 2, "-O", "calibration.batch_size=2", "--max-drop", 1, "--seed", 0)
    hosts.start("calibrate", "--profile", hosts.profile(port, **device), *subject, *options)


def calibrate(hosts, port, **device):
    """The record that the calibration has left behind, and what it said."""
    start_calibration(hosts, port, **device)
    done = hosts.wait()
    assert done.code == 0, done.err
    assert [path.name for path in hosts.folder.iterdir()] == ["calibration.safetensors"]
    return Record.load(hosts.folder / "calibration.safetensors"), done.err


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory, peers):
    """By kind of peer: the record that is made when nothing happens, and the types of the frames that make it."""
    made = {}

    def get(kind):
        if kind not in made:
            hosts = Hosts(nursery, tmp_path_factory.mktemp(kind))
            with peers.cabled(kind) as cable:
                made[kind] = calibrate(hosts, cable.address)[0], cable.sent
        return made[kind]

    return get


def same(record, other):
    """Bit for bit; when and on which board it was made is something else."""
    assert record.method == other.method
    assert record.corrections.keys() == other.corrections.keys()
    for name, parts in record.corrections.items():
        assert parts.keys() == other.corrections[name].keys()
        assert all(torch.equal(tensor, other.corrections[name][part]) for part, tensor in parts.items())
    assert (record.made_with.before, record.made_with.after) == (other.made_with.before, other.made_with.after)


def reset(cable):
    """What somebody's finger on the button does."""
    cable.inject(b"\0" + encode_frame(Frame(MessageType.RESET, 0)))


def power_over_usb(cable):
    cable.unplug(0.1)
    cable.cut_power(0.1)


DISTURBANCES = {
    "unplugged": lambda cable: cable.unplug(0.2),
    "unplugged without power of its own": power_over_usb,
    "power cut": lambda cable: cable.cut_power(0.1),
    "reset": reset,
}


def due(frames, moment):
    """How many frames of which types have been sent at a moment of the calibration that sends `frames`."""
    if moment == "programming":
        return max(1, sum(kind in PROGRAMMING for kind in frames) // 2), PROGRAMMING
    measured = frames.index(MessageType.READ)  # the record tells the temperature, and then the gate begins
    for_record, for_gate = (sum(kind in PRODUCTS for kind in part) for part in (frames[:measured], frames[measured:]))
    assert min(for_record, for_gate) > 5
    return (for_record // 2 if moment == "calibration" else for_record + for_gate // 2), PRODUCTS


@pytest.mark.parametrize("kind", PEERS[1:])
def test_every_peer_gives_one_record(undisturbed, kind):
    record = undisturbed(PEERS[0])[0]
    assert all(tensor.count_nonzero() for parts in record.corrections.values() for tensor in parts.values())
    same(undisturbed(kind)[0], record)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("kind", PEERS)
def test_a_board_that_comes_back_every_time_gives_the_same_record(hosts, peers, undisturbed, kind, disturbance):
    expected, frames = undisturbed(kind)
    with peers.cabled(kind) as cable:
        for moment in MOMENTS:
            cable.at(*due(frames, moment), lambda: DISTURBANCES[disturbance](cable))
        record, _ = calibrate(hosts, cable.address)
        assert not cable.waits
    same(record, expected)


@pytest.mark.parametrize("moment", ["programming", "calibration"])
@pytest.mark.parametrize("kind", PEERS)
def test_a_board_that_stays_away_is_lost_and_nothing_is_half_written(hosts, peers, undisturbed, kind, moment):
    former = hosts.folder / "calibration.safetensors"
    former.write_bytes(FORMER)
    with peers.cabled(kind) as cable:
        cable.at(*due(undisturbed(kind)[1], moment), lambda: cable.unplug(1000))
        start_calibration(hosts, cable.address, reconnect_s=0.3)
        done = hosts.wait()
    assert (done.code, done.out) == (69, "")
    assert f"error: device lost: the board on {cable.address}: " in done.err
    assert "check its cable and power, then start again" in done.err
    assert list(hosts.folder.iterdir()) == [former]
    assert former.read_bytes() == FORMER


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("kind", PEERS)
def test_a_run_that_is_ended_leaves_the_board_answering(hosts, peers, undisturbed, kind, number, code):
    expected, frames = undisturbed(kind)
    with peers.cabled(kind) as cable:
        for moment in ("programming", "calibration"):
            cable.at(*due(frames, moment), lambda: os.kill(hosts.process_id, number))
            start_calibration(hosts, cable.address)
            done = hosts.wait()
            assert (done.code, done.out, [*hosts.folder.iterdir()]) == (code, "", [])
        record, told = calibrate(hosts, cable.address, margin_s=20.0)
    assert "WARNING" not in told  # the board answered what it was asked first, however long that took
    same(record, expected)


@pytest.mark.parametrize("kind", PEERS)
def test_a_measurement_goes_on_where_the_cable_was_pulled(hosts, peers, kind):
    with peers.cabled(kind) as cable:
        cable.at(20, {MessageType.ECHO}, lambda: cable.unplug(0.2))
        done = hosts.run("board", "echo", "--profile", hosts.profile(cable.address), "--count", 100, "--json")
        assert not cable.waits
    assert done.code == 0, done.err
    assert json.loads(done.out)["frames"] == 100


@pytest.mark.parametrize("kind", PEERS)
def test_a_measurement_ends_where_the_board_restarts(hosts, peers, kind):
    with peers.cabled(kind) as cable:
        cable.at(20, {MessageType.ECHO}, lambda: reset(cable))
        done = hosts.run("board", "bench", "--profile", hosts.profile(cable.address))
        assert not cable.waits
        assert hosts.run("board", "info", "--port", cable.address).code == 0
    assert (done.code, done.out) == (69, "")
    assert "has restarted" in done.err
