"""What the machine says of this process."""

from __future__ import annotations

import sys

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
