"""What every side measures with; standard library only, so that it runs in the environment of any framework."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "llamafactory", "posttrain")


class Window:
    """Seconds of the clock and of the processor (all threads of this process, user and system) spent inside."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def __enter__(self) -> Window:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, every call of which is measured."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return measured


def peak_rss_bytes() -> int:
    """The most memory that this process ever had resident: VmHWM, or what getrusage says."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Python and the libraries that decide how fast a side is."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_spec() -> dict[str, Any]:
    """The first argument of the command line, read."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def read_rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that both sides work on, in their order."""
    return json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))


def write_result(window: Window, **more: Any) -> None:
    """The second argument of the command line, written; what a side does not say is null."""
    result = {
        "seconds": window.seconds,
        "cpu_seconds": window.cpu_seconds,
        **dict.fromkeys(("live_tokens", "generated_tokens", "samples", "first_loss", "first_grad_norm")),
        "peak_rss_bytes": peak_rss_bytes(),
        "versions": versions(),
        "notes": [],
        **more,
    }
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1), encoding="utf-8")
