"""Others use a network in the middle of its calibration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pimcal.calibration import calibrate
from pimcal.calibration.interlude import Pause
from pimcal.corrections import corrections_in_force, set_corrections
from pimcal.deployment import Deployment
from pimcal.record import Record

from .recalibration_devices import batches, images, on_faulty

GUEST = images(4, seed=9)


def spread(net: Deployment) -> dict[str, Any]:
    """Corrections that nobody would calibrate to."""
    return {
        name: {key: value + 0.5 for key, value in values.items()} for name, values in corrections_in_force(net).items()
    }


def calibrated(method: Any, size: int, pause: Any = None) -> tuple[Record, list[torch.Tensor], torch.Tensor, int]:
    """The record, what guests got, what they ought to get, and all products."""
    net, backend = on_faulty()
    backend.factors = {0: 1.3, 1: 0.8, 2: 1.2}
    in_force = spread(net)
    set_corrections(net, in_force)
    expected, served = net(GUEST), list[torch.Tensor]()

    def serve() -> None:
        tried = corrections_in_force(net)
        set_corrections(net, in_force)
        served.append(net(GUEST))
        set_corrections(net, tried)

    before = net.device.cost.mvms
    options: dict[str, Pause] = {"pause": serve} if pause else {}
    record = calibrate(net, batches(64, seed=1, size=size), method, **options)
    return record, served, expected, net.device.cost.mvms - before


@pytest.mark.parametrize("size", [16, 64], ids=["several batches", "one batch"])
@pytest.mark.parametrize("method", ["paired", "affine", "pooled", "ema"])
def test_the_calibration_is_the_same_and_guests_get_what_is_in_force(method: str, size: int) -> None:
    alone, _, _, mvms_alone = calibrated(method, size)
    record, served, expected, mvms = calibrated(method, size, pause=True)
    assert served
    assert all(torch.equal(output, expected) for output in served)
    assert record.corrections.keys() == alone.corrections.keys()
    for name, values in record.corrections.items():
        for key, value in values.items():
            assert torch.equal(value, alone.corrections[name][key]), (name, key)
    assert record.made_with.mvms == alone.made_with.mvms == mvms_alone
    assert mvms > mvms_alone


def test_what_a_guest_raises_ends_the_calibration_and_leaves_what_was_in_force() -> None:
    net, _ = on_faulty()
    before = corrections_in_force(net)

    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(net, batches(64, seed=1), "paired", pause=fails)
    after = corrections_in_force(net)
    assert all(torch.equal(value, after[name][key]) for name, values in before.items() for key, value in values.items())
    hooks = [module._forward_pre_hooks for module in net.module.modules()]
    assert not any(hooks)
