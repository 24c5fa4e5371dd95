"""How long `pimcal --help` takes, as a whole process: one JSON object with the median and the spread in seconds."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

LIMIT_S = 0.5


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    pairs = [(seconds(["-m", "pimcal", "--help"]), seconds(["-c", "pass"])) for _ in range(runs)]
    help_s, python_s = zip(*pairs, strict=True)
    result = {
        "help_s": round(statistics.median(help_s), 3),
        "help_min_s": round(min(help_s), 3),
        "help_max_s": round(max(help_s), 3),
        "bare_python_s": round(statistics.median(python_s), 3),
        "limit_s": LIMIT_S,
        "within_limits": statistics.median(help_s) <= LIMIT_S,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
