"""Run by CI inside an environment that holds nothing but the built wheel and what it requires."""

import importlib.util
from pathlib import Path

import torch
from torch import nn

import pimcal
import pimcal.errors
import pimcal_serial

CHECKOUT = Path(__file__).parents[2]


def main() -> None:
    assert CHECKOUT not in Path(pimcal.__file__).parents, f"pimcal comes from the checkout: {pimcal.__file__}"
    for library in ("aihwkit", "matplotlib", "serial", "sklearn", "torchvision", "pytest"):
        assert importlib.util.find_spec(library) is None, f"{library} is installed: the wheel asks for too much"
    check_files_that_are_no_python()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    images = torch.randn(32, 3, 8, 8)
    with pimcal.open_device("gaussian_mul") as device, torch.no_grad():
        net = pimcal.deploy(model, device)
        before = (net(images) - model(images)).square().mean()
        net.apply(pimcal.calibrate(net, images.split(8)))
        after = (net(images) - model(images)).square().mean()
    assert after < before, (before, after)
    try:
        pimcal.open_device("aihwkit_pcm")
    except pimcal.errors.MissingExtraError as error:
        assert "pip install 'pimcal[aihwkit]'" in str(error), error
    else:
        raise AssertionError("a profile for aihwkit opened without aihwkit")
    print(f"wheel works: {pimcal.__file__}")


def check_files_that_are_no_python() -> None:
    """The firmware's sources and the udev rule come along."""
    for folder in ("firmware", "udev"):
        there, expected = (
            {path.name for path in (package / folder).iterdir() if path.is_file()}
            for package in (Path(pimcal_serial.__file__).parent, CHECKOUT / "backends" / "pimcal_serial")
        )
        assert there == expected, f"{folder}: {there ^ expected}"


if __name__ == "__main__":
    main()
