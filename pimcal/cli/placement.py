"""`pimcal placement`: what would sit where on a device, and what it would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pimcal.cli import options as o
from pimcal.cli.output import print_json, say, stdout_for_json
from pimcal.errors import UsageError


def placement(
    profile: o.ProfileOption,
    model: o.ModelOption,
    weights: o.Weights = None,
    data: o.OptionalData = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W", help="An input's shape, instead of --data.")
    ] = None,
    preprocess: o.Preprocess = "none",
    classes: o.Classes = None,
    calling: o.CallingOption = None,
    override: o.Overrides = None,
    as_json: o.Json = False,
) -> None:
    """Show each layer's tiles, cells and MVMs per input, or why it stays on the host.

    MVMs need an input: give --input-shape, or --data.
    """
    import torch

    from pimcal.calibration.estimate import vectors_per_input
    from pimcal.deployment import deploy
    from pimcal.device import open_device

    shape = o.parse_shape(input_shape)
    if shape is not None and data is not None:
        raise UsageError("give --input-shape or --data, not both")
    with stdout_for_json(as_json):
        subject = o.load_subject(profile, override, model, weights, None, "cpu")
        batch: Any = None if shape is None else torch.zeros(1, *shape)
        if data is not None:
            batch = o.Reading(preprocess, 1, classes, calling).load(data, 1).first
        if batch is not None:
            o.check_input(subject.model, batch)
        with open_device(subject.profile) as device:
            net = deploy(subject.model, device, batch)
            found = net.placement
            if batch is not None:
                found = found.with_positions(vectors_per_input(net, batch))
    if as_json:
        print_json(found.as_dict())
    else:
        say(str(found))
        if found.mvms is not None:
            typer.echo(f"{found.mvms:,} MVMs for one input")
