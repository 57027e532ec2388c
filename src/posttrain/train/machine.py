"""What the machine says of this process."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch


def peak_memory_bytes() -> int:
    """The most memory this process held so far: on the GPU if one is used, else resident in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def free_memory_bytes() -> int:
    """Memory that a new process could still take: of the GPU if there is one, else RAM, as a container limits it."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limits = [limit - used for limit, used in _container_limits()]
    return max(0, min([free, *limits]))


def _container_limits(root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """(limit, used) in bytes as control groups of version 2 or 1 state them; none where there is no limit."""
    found = []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(
                (int((root / limit).read_text(encoding="ascii")), int((root / used).read_text(encoding="ascii")))
            )
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
