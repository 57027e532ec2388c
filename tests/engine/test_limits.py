"""What the machine can do is measured, and quickly."""

from __future__ import annotations

import time

import torch

from posttrain.engine import machine_limits


def test_they_are_those_of_this_machine() -> None:
    """Bounds that any machine of this century keeps; a mistake in bytes or operations is a factor of two at least."""
    state = torch.get_rng_state()
    began = time.perf_counter()
    found = machine_limits(torch.device("cpu"), torch.float32, seconds=0.05)
    assert time.perf_counter() - began < 20
    assert 1e9 < found.flops_per_second < 1e14
    assert 1e8 < found.bytes_per_second < 1e13
    assert torch.equal(torch.get_rng_state(), state)
