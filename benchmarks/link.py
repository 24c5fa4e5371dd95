"""How well the link to a serial board works: one JSON object.

`rate`: products streamed to `pimsim` over a pseudo-terminal that is paced 8N1, over the wire's bound: the bytes of
the slower direction, requests and answers once each, at ten bits a byte. Board and host are two processes.
`errors`: the same with byte errors in both directions, over the rate without errors, taken in turns.
`exact`: random products through the native firmware, the firmware under QEMU, and `pimsim`, against numpy's integers.
`garbage`: bursts of garbage between frames, in both directions.
`resnet`: accuracy of the trained ResNet-20 at 8 bits on the virtual board without noise, against float.
`bytes`: what one CIFAR-10 image through ResNet-20 takes on the wire, against int8 patches and int16 results.
`calibration`: accuracy of ResNet-20 on `board_virtual` before and after a calibration with 64 images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from link_garbage import garbage
from link_network import calibration, resnet, wire_bytes
from link_products import exact
from link_rate import errors, rate

PARTS = "rate,errors,exact,garbage,resnet,bytes,calibration"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=PARTS, help="what to run, comma-separated")
    parser.add_argument("--bauds", type=int, nargs="+", default=[115_200, 921_600, 3_000_000, 12_000_000])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each stream of rate and errors")
    parser.add_argument("--repeats", type=int, default=3, help="of rate; of errors, each with faults of its own")
    parser.add_argument("--cols", type=int, default=64, help="of the matrix of rate and errors, which has 256 rows")
    parser.add_argument("--products", type=int, default=10_000, help="of exact, through each peer")
    parser.add_argument("--bursts", type=int, default=10_000, help="of garbage, at each peer")
    parser.add_argument("--images", type=int, default=500, help="test images of resnet and calibration")
    parser.add_argument("--seeds", type=int, default=3, help="boards of calibration")
    options = parser.parse_args()
    streams = options.bauds, options.seconds, options.repeats, options.cols
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rate": lambda: rate(*streams),
        "errors": lambda: errors(*streams),
        "exact": lambda: exact(options.products),
        "garbage": lambda: garbage(options.bursts),
        "resnet": lambda: resnet(options.images),
        "bytes": wire_bytes,
        "calibration": lambda: calibration(options.images, options.seeds),
    }
    print(json.dumps({name: parts[name]() for name in options.parts.split(",")}, indent=2))


if __name__ == "__main__":
    main()
