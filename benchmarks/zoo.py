"""Architectures of torch, torchvision, timm, transformers and segmentation-models-pytorch, deployed on `ideal`.

For each: whether its output is plain torch's up to rounding, and which share of its multiplications with weights
happens on the device, counted from torch's kernels alone. Weights are random, nothing is downloaded. Needs the extra
`zoo`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo_macs import Macs
from zoo_models import LIBRARIES, QUICK, Architecture

import pimcal
from pimcal.attention import own_attention
from pimcal.errors import PimcalError

TIME_LIMIT_S = 120
ROUNDING = 1e-4  # an error of the output, relative to its largest value, that nobody asks about
NOISY = 10  # times the rounding error of plain float32 against float64 are rounding, too


class TooSlow(BaseException):
    """An architecture took longer than it may. No Exception, so that nothing on the way takes it for an error."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examine(architecture: Architecture) -> dict[str, Any]:
    """One row: does it agree, how much is on the device, or why not."""
    row: dict[str, Any] = {"library": architecture.library, "name": architecture.name}
    start = time.perf_counter()
    try:
        with time_limit(TIME_LIMIT_S), torch.no_grad():
            row |= compare(architecture)
    except PimcalError as error:
        row |= {"refused": str(error)[:300]}
    except TooSlow:
        row |= {"failed": f"took longer than {TIME_LIMIT_S} s"}
    except Exception as error:
        row |= {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def compare(architecture: Architecture) -> dict[str, Any]:
    torch.manual_seed(0)
    model = lively(architecture.make().eval())
    inputs = first_that_fits(model, architecture)
    net = pimcal.deploy(model, pimcal.open_device("ideal"))
    plain, deployed = Macs(inputs), Macs(inputs)
    with torch.backends.mkldnn.flags(enabled=not has_recurrence(model)):
        with own_attention(), plain:
            expected = call(model, inputs)
        with deployed.on_device(), deployed:
            actual = call(net, inputs)
    error = relative_error(actual, expected)
    rounding = 0.0 if error <= ROUNDING else rounding_error(model, inputs, expected)
    weights, device = plain.counts["weights"], deployed.counts["device"]
    return {
        "agrees": error <= max(ROUNDING, NOISY * rounding),
        "error": error,
        "rounding": rounding,
        "share": device / weights if weights else 1.0,
        "weight_macs": weights,
        "input_macs": plain.counts["inputs"],
        "uncounted": sorted(plain.uncounted),
        "host": sorted({r.reason for r in net.placement.layers if r.reason and "looks up" not in r.reason})[:4],
    }


def lively(model: nn.Module) -> nn.Module:
    """Random values where constants would hide errors: layer scales of 1e-6, biases and last norms of 0."""
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1 and parameter.is_floating_point() and float(parameter.std()) == 0:
            centre = float(parameter.flatten()[0])
            if abs(centre) < 0.01 and "bias" not in name:
                centre = 0.5
            parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


def has_recurrence(model: nn.Module) -> bool:
    """Whether mkldnn would hide products in a kernel for a whole sequence."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def first_that_fits(model: nn.Module, architecture: Architecture) -> Any:
    for make in architecture.inputs[:-1]:
        inputs = make()
        try:
            call(model, inputs)
        except Exception:
            continue
        return inputs
    return architecture.inputs[-1]()


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All floating-point tensors of the output; random numbers that a model draws are the same each time."""
    torch.manual_seed(1)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    output = model(*(a.clone() for a in args), **{k: v.clone() for k, v in kwargs.items()})
    output = dict(output) if isinstance(output, dict) else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor; infinite for other shapes or NaN."""
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return float("inf")
    errors = [_error(a.double(), e.double()) for a, e in zip(actual, expected, strict=True) if e.numel()]
    return max(errors, default=float("inf"))


def _error(actual: Tensor, expected: Tensor) -> float:
    if not bool(torch.isfinite(expected).all()):
        return 0.0 if torch.equal(actual.nan_to_num(), expected.nan_to_num()) else float("inf")
    error = float((actual - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
    return error if error == error else float("inf")


def rounding_error(model: nn.Module, inputs: Any, expected: Sequence[Tensor]) -> float:
    """How far plain torch in float32 is from float64; 0 where the model cannot be run so."""
    doubled = {k: _double(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(_double, inputs))
    try:
        exact = call(model.double(), doubled)
    except Exception:
        return 0.0
    return relative_error(expected, exact)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    deployed = [row for row in rows if "share" in row]
    shares = [row["share"] for row in deployed]
    fine = [row for row in rows if row.get("agrees") or row.get("refused")]
    return {
        "architectures": len(rows),
        "agree": sum(row["agrees"] for row in deployed),
        "agree_or_refused_share": len(fine) / max(1, len(rows)),
        "disagree": [_name(row) for row in deployed if not row["agrees"]],
        "refused": [_name(row) for row in rows if "refused" in row],
        "failed": [_name(row) for row in rows if "failed" in row],
        "median_share": statistics.median(shares) if shares else None,
        "worst_share": min(shares, default=None),
        "below_90_percent": {_name(row): round(row["share"], 3) for row in deployed if row["share"] < 0.9},
        "uncounted": sorted({op for row in deployed for op in row["uncounted"]}),
    }


def _name(row: dict[str, Any]) -> str:
    return f"{row['library']}/{row['name']}"


def selected(patterns: Sequence[str], quick: bool) -> Iterator[Architecture]:
    for architecture in chain.from_iterable(library() for library in LIBRARIES.values()):
        name = f"{architecture.library}/{architecture.name}"
        if (not quick or name in QUICK) and (not patterns or any(fnmatchcase(name, p) for p in patterns)):
            yield architecture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="globs of library/name")
    parser.add_argument("--quick", action="store_true", help="a small representative set")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    rows = []
    for architecture in selected(options.only, options.quick):
        rows.append(examine(architecture))
        print(json.dumps(rows[-1]), file=sys.stderr)
        gc.collect()
    print(json.dumps({"benchmark": "zoo", "torch": torch.__version__, "summary": summary(rows), "rows": rows}))


if __name__ == "__main__":
    main()
