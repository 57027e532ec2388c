"""How fast the machine is at this moment: a fixed matrix product and a fixed stream of memory, about a second each.

``python -m benchmarks.compare.calibration`` prints it as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

SIZE = 1024
WORDS = 32_000_000
SECONDS = 1.0


def calibration(seconds: float = SECONDS) -> dict[str, float]:
    """``gflops`` of float32 products [1024, 1024] and ``gbytes`` per second of a read that exceeds every cache."""
    import numpy

    a = numpy.full((SIZE, SIZE), 0.5, dtype=numpy.float32)
    out = numpy.empty_like(a)
    stream = numpy.ones(WORDS, dtype=numpy.float32)
    products = _per_second(lambda: numpy.matmul(a, a, out=out), seconds)
    reads = _per_second(lambda: numpy.dot(stream, stream), seconds)
    return {"gflops": 2 * SIZE**3 * products / 1e9, "gbytes": stream.nbytes * reads / 1e9}


def calibrated(environment: Mapping[str, str]) -> dict[str, float]:
    """``calibration`` in a process of its own, with the threads that the sides have."""
    command = [sys.executable, "-m", "benchmarks.compare.calibration"]
    found = subprocess.run(command, env=dict(environment), check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(found.stdout)
    return measured


def drift(calibrations: list[dict[str, float]]) -> float:
    """The largest change of any of the quantities, as a share of the larger value."""
    names = calibrations[0]
    return max(1 - min(c[name] for c in calibrations) / max(c[name] for c in calibrations) for name in names)


def _per_second(work: Callable[[], Any], seconds: float) -> float:
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps(calibration()))
