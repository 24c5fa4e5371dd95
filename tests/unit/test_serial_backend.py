"""The backend `serial` on a virtual board: within the process, on a pseudo-terminal and over TCP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pimcal
from pimcal.errors import DataError, DeviceBusyError, DeviceUnavailableError
from pimcal_serial.backend import Serial
from pimcal_serial.settings import SerialSettings
from pimcal_serial.simulator.ports import Port, PtyPort, TcpPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import BoardSettings

AS_ANNOUNCED = SimpleNamespace(count=None, rows=None, cols=None)
SMALL = {"tiles": 3, "rows": 40, "cols": 24, "max_payload": 512}
PATIENCE = {"margin_s": 0.1, "connect_s": 2.0, "reconnect_s": 600.0}


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def backend_on(port: str, **settings: Any) -> Serial:
    part = {"port": port, "baud": 12_000_000, **PATIENCE, **settings}
    return Serial(SerialSettings.model_validate_json(json.dumps(part)), AS_ANNOUNCED)


def virtual(**simulator: Any) -> Serial:
    return backend_on("sim:", simulator={**SMALL, **simulator})


@contextmanager
def served(kind: str, **simulator: Any) -> Iterator[Serial]:
    """A backend on a virtual board in a thread of its own, behind a real port of the operating system."""
    port: Port = PtyPort() if kind == "pty" else TcpPort(0)
    with (
        serving(BoardSettings.model_validate_json(json.dumps({**SMALL, **simulator})), port),
        backend_on(port.address) as backend,
    ):
        yield backend


def codes(*shape: int, seed: int = 0, top: int = 127) -> Tensor:
    return torch.randint(-top, top + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


# --- what the board announces


def test_capabilities_are_what_the_board_announces() -> None:
    with virtual(weight_bits=5, input_bits=6, output_bits=7, mvm_ns=2500, serial_number="S1") as backend:
        found = backend.capabilities
    assert (found.tiles, found.rows, found.cols) == (3, 40, 24)
    assert (found.weight_bits, found.input_bits, found.output_bits) == (5, 6, 7)
    assert (found.weight_unit, found.firmware, found.mvm_s) == ("full_scale", "pimsim", 2.5e-6)
    assert found.identity == "pimsim S1"


def test_another_board_than_the_profile_wants_is_refused() -> None:
    with pytest.raises(DeviceUnavailableError, match="serial number SIM-0001, the profile wants PIM-7"):
        backend_on("sim:", serial_number="PIM-7")


def test_telemetry_has_the_boards_readings_and_the_links_counters() -> None:
    with virtual(supply_mv=3210, array={"temperature_c": 41.5}) as backend:
        readings = backend.telemetry()
    assert readings["temperature_c"] == pytest.approx(41.5)
    assert readings["supply_v"] == pytest.approx(3.21)
    assert readings["link_sent_bytes"] > 0
    assert readings["link_repeats"] == readings["board_restarts"] == 0


# --- products


@pytest.mark.parametrize("kind", ["sim", "pty", "tcp"])
def test_products_are_those_of_integers(kind: str) -> None:
    weights, inputs = codes(40, 24), codes(300, 40, seed=1).relu()
    with virtual() if kind == "sim" else served(kind) as backend:
        backend.program(2, weights)
        assert torch.equal(backend.matmul(2, inputs), inputs @ weights)


@pytest.mark.parametrize("capability", ["int4_inputs", "zero_skipping", "packed_outputs"])
@pytest.mark.parametrize("top", [7, 127])
@pytest.mark.parametrize("zeros", [0.0, 0.9, 1.0])
def test_the_format_on_the_wire_changes_no_product(capability: str, top: int, zeros: float) -> None:
    weights, inputs = codes(39, 23), codes(50, 39, seed=1, top=top)
    inputs[torch.rand(inputs.shape, generator=torch.Generator().manual_seed(2)) < zeros] = 0
    with virtual(capabilities=[capability]) as backend:
        backend.program(0, weights)
        assert torch.equal(backend.matmul(0, inputs), inputs @ weights)


def test_zero_skipping_inputs_and_packed_outputs_save_the_link() -> None:
    weights, inputs = codes(40, 24), codes(200, 40, seed=1)
    inputs[:, ::2] = 0
    travelled = []
    for capabilities in ([], ["zero_skipping", "packed_outputs"]):
        with virtual(capabilities=capabilities, output_bits=8) as backend:
            backend.program(0, weights)
            before = backend.telemetry()
            backend.matmul(0, inputs)
            after = backend.telemetry()
        travelled.append([after[key] - before[key] for key in ("link_sent_bytes", "link_received_bytes")])
    assert travelled[1][0] < 0.75 * travelled[0][0]
    assert travelled[1][1] < 0.65 * travelled[0][1]


@pytest.mark.parametrize("bits", [4, 8, 12, 20])
def test_converted_products_are_within_half_a_step(bits: int) -> None:
    weights, inputs = codes(40, 24), codes(100, 40, seed=1)
    exact = inputs @ weights
    with virtual(output_bits=bits) as backend:
        backend.program(0, weights)
        outputs = backend.matmul(0, inputs)
    step = max(1.0, 1.2 * float(exact.abs().max()) / (2 ** (bits - 1) - 1) + 1)
    assert float((outputs - exact).abs().max()) <= step / 2


def test_the_step_grows_when_later_inputs_are_larger() -> None:
    weights, small = codes(40, 24), codes(20, 40, seed=1, top=2)
    large = codes(400, 40, seed=2)
    exact = large @ weights
    with virtual(output_bits=8) as backend:
        backend.program(0, weights)
        backend.matmul(0, small)
        outputs = backend.matmul(0, large)
        clipped = float((outputs - exact).abs().max() / exact.abs().max())
        backend.program(0, weights)
        outputs_again = backend.matmul(0, small)
    assert clipped < 0.1
    assert float((outputs_again - small @ weights).norm() / (small @ weights).norm()) < 0.02


def test_all_zero_inputs_do_not_fix_the_step() -> None:
    weights, inputs = codes(40, 24), codes(30, 40, seed=1)
    with virtual(output_bits=8) as backend:
        backend.program(0, weights)
        assert not backend.matmul(0, torch.zeros(3, 40)).any()
        outputs = backend.matmul(0, inputs)
    assert float((outputs - inputs @ weights).norm() / (inputs @ weights).norm()) < 0.02


def test_no_vectors_give_no_outputs() -> None:
    with virtual() as backend:
        backend.program(0, codes(40, 24))
        assert backend.matmul(0, torch.zeros(0, 40)).shape == (0, 24)


@pytest.mark.parametrize("value", [128.0, -128.0, 0.5, 1e9])
def test_inputs_and_weights_that_are_no_codes_are_refused(value: float) -> None:
    with virtual() as backend:
        backend.program(0, codes(40, 24))
        for call in (
            lambda: backend.matmul(0, torch.full((1, 40), value)),
            lambda: backend.program(0, torch.full((4, 4), value)),
        ):
            with pytest.raises(DataError, match="tile 0"):
                call()


# --- a network


class Block(nn.Module):
    """A residual block, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.norm(self.first(x)).relu()) + self.shortcut(x)).relu()


def small_resnet() -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return layers.eval()


def test_a_network_gives_what_integer_arithmetic_gives(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(
        "schema: pimcal/1\nbackend: plain\ndevice: {weight_bits: 8, input_bits: 8}\ntiles: {rows: 64, cols: 64}\n"
    )
    model, images = small_resnet(), torch.randn(4, 3, 8, 8)
    with torch.no_grad(), pimcal.open_device("board_virtual", _digital()) as board:
        through_board = pimcal.deploy(model, board)(images)
    with torch.no_grad(), pimcal.open_device(str(tmp_path / "plain.yaml")) as plain:
        through_integers = pimcal.deploy(model, plain)(images)
    torch.testing.assert_close(through_board, through_integers, rtol=1e-5, atol=1e-5)
    assert not torch.equal(through_board, model(images))


def _digital() -> dict[str, object]:
    noise = "device.simulator.array"
    return {
        f"{noise}.eta0": 0.0,
        f"{noise}.sigma_spatial": 0.0,
        f"{noise}.gain_spread": 0.0,
        "device.simulator.output_bits": 0,
        "tiles.rows": 64,
        "tiles.cols": 64,
    }


# --- faults


@pytest.mark.parametrize("fault", ["reset_at", "unplug_at", "stall_at"])
@pytest.mark.parametrize("kind", ["sim", "pty"])
def test_faults_in_the_middle_change_no_product(kind: str, fault: str) -> None:
    weights, inputs = codes(40, 24), codes(300, 40, seed=1)
    faults = {fault: [3, 9, 30], "unplugged_s": 0.05, "stall_s": 0.2}
    with virtual(faults=faults) if kind == "sim" else served(kind, faults=faults) as backend:
        backend.program(0, weights)
        backend.program(1, weights[:7])
        assert torch.equal(backend.matmul(0, inputs), inputs @ weights)
        assert torch.equal(backend.matmul(1, inputs[:, :7]), inputs[:, :7] @ weights[:7])


def test_a_bad_line_changes_no_product() -> None:
    weights, inputs = codes(40, 24), codes(200, 40, seed=1)
    shares = dict.fromkeys(("lost", "duplicated", "reordered", "corrupted", "truncated"), 0.02)
    with served("tcp", faults=shares) as backend:
        backend.program(0, weights)
        assert torch.equal(backend.matmul(0, inputs), inputs @ weights)
        assert backend.telemetry()["link_repeats"] > 0


def test_a_board_that_does_not_come_back_is_lost() -> None:
    port = PtyPort()
    with serving(BoardSettings(**SMALL), port):
        backend = backend_on(port.address, reconnect_s=0.3)
        backend.program(0, codes(40, 24))
    with pytest.raises(DeviceUnavailableError, match="device lost"):
        backend.matmul(0, codes(5, 40))
    backend.close()


def test_a_port_in_use_says_who_uses_it() -> None:
    with served("pty") as backend:
        port = backend._connection._settings.port
        with pytest.raises(DeviceBusyError, match=rf"{port} is in use by process {os.getpid()} \("):
            backend_on(port)
        assert backend.telemetry()


def test_ctrl_c_in_the_middle_leaves_the_board_answering() -> None:
    port = PtyPort()
    script = f"""
import torch
from types import SimpleNamespace
from pimcal_serial.backend import Serial
from pimcal_serial.settings import SerialSettings
settings = SerialSettings(port={port!r}, baud=12_000_000)
with Serial(settings, SimpleNamespace(count=None, rows=None, cols=None)) as backend:
    backend.program(0, torch.ones(40, 24))
    print("ready", flush=True)
    while True:
        backend.matmul(0, torch.ones(1000, 40))
"""
    with serving(BoardSettings(**SMALL), port):
        running = subprocess.Popen(
            [sys.executable, "-c", script.replace(repr(port), repr(port.address))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.2)
        running.send_signal(2)
        assert running.wait(30) != 0
        running.stdout.close()
        weights, inputs = codes(40, 24), codes(9, 40, seed=1)
        with backend_on(port.address) as backend:
            backend.program(0, weights)
            assert torch.equal(backend.matmul(0, inputs), inputs @ weights)


def test_the_installation_is_described() -> None:
    assert "pyserial 3" in Serial.check_installation()
