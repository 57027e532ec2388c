"""What this machine can do at most, measured in the process that is about to train: arithmetic and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from posttrain.functional import products
from posttrain.models.work import Work

SMALLEST = 10_000_000
"""Weights that a processor's cache holds are no measure of its memory: smaller models are not measured unasked."""
_SECONDS = 0.4
_TRIES = 3


@dataclass(frozen=True)
class Limits:
    """The fastest that was seen.

    Attributes:
        flops_per_second: of a large matrix product in the model's dtype.
        bytes_per_second: of reading memory once.
    """

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """The least time that the work takes here: arithmetic, in each step of decoding or else reading the weights."""
        decoding = sum(
            max(flops / self.flops_per_second, size / self.bytes_per_second) for flops, size in work.steps.values()
        )
        rest = work.ideal_flops - sum(flops for flops, _ in work.steps.values())
        return decoding + rest / self.flops_per_second


def machine_limits(device: torch.device, dtype: torch.dtype, *, seconds: float = _SECONDS) -> Limits:
    """Measure them with as many threads as torch uses: the best of several tries, no random numbers drawn.

    Args:
        device, dtype: where and in what the model computes.
        seconds: that each of the two measurements takes, or three tries where that is longer.
    """
    gpu = device.type == "cuda"
    size = 8192 if gpu else 1024
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = torch.full_like(left, 0.25)
    ways = (lambda: left @ right, lambda: products.product(left, right))  # by torch, and as the linear layers do it
    flops = 2 * size**3 / min(_best(way, device, seconds / 2) for way in ways)
    # several times what caches hold; what a run needs later is more
    memory = torch.ones((1 << 28) if gpu else (1 << 25), dtype=torch.float32, device=device)
    return Limits(flops, memory.nbytes / _best(memory.sum, device, seconds))


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of one call; the first one, which also loads code, does not count."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    work()
    wait()
    began, times = time.perf_counter(), list[float]()
    while len(times) < _TRIES or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)
