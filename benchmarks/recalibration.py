"""Recalibration: one JSON object.

`probe`: false alarms of the probe where nothing drifts, and how often it notices, at the next check, a drift that costs
one point of accuracy.
`policies`: 30 simulated days of recalibrating every hour, and of probing every hour and recalibrating on drift.
`memory`: the resident memory of 30 simulated days of the probe policy, after its first tenth.
`kills`: processes that change a store, and whole daemons, killed at random moments; the store is whole each time.
`hour`: the resident memory of a real daemon that serves HTTP at 20 times the normal rate, after its first tenth.
`cables`: a daemon with a simulated board at a cable; the cable is pulled and the board reset in each minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

sys.path.append(sys.path.pop(0))  # behind the installed packages, whose names programs here have

import torch
from recalibration_cables import measure_cables
from recalibration_hour import measure_hour
from recalibration_kills import measure_kills
from recalibration_policies import measure_memory, measure_policies
from recalibration_probe import measure_probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="probe", help="what to run, comma-separated")
    parser.add_argument("--devices", type=int, default=10, help="of each kind, for the probe")
    parser.add_argument("--checks", type=int, default=100, help="of each device, a tenth of it on aihwkit")
    parser.add_argument("--seeds", type=int, default=3, help="devices of each kind, for the policies")
    parser.add_argument("--kinds", help="of drift, for probe and policies, with semicolons; left out: all")
    parser.add_argument("--kills", type=int, default=200, help="of processes that change a store")
    parser.add_argument("--daemon-kills", type=int, default=40, help="of whole daemons")
    parser.add_argument("--disk-kills", type=int, default=40, help="of processes on a disk that is full")
    parser.add_argument("--seed", type=int, default=0, help="of random moments, for kills and cables")
    parser.add_argument("--minutes", type=float, default=60, help="of the hour")
    parser.add_argument("--minutes-cables", type=int, default=10, help="of the cables")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "probe": lambda: measure_probes(options.devices, options.checks, options.kinds),
        "policies": lambda: measure_policies(options.seeds, options.kinds),
        "memory": measure_memory,
        "kills": lambda: measure_kills(options.kills, options.daemon_kills, options.disk_kills, options.seed),
        "hour": lambda: measure_hour(options.minutes),
        "cables": lambda: measure_cables(options.minutes_cables, options.seed),
    }
    print(json.dumps({name: parts[name]() for name in options.parts.split(",")}, indent=2))


if __name__ == "__main__":
    main()
