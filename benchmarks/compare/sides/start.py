"""One start for both sides: every LoRA A matrix and every new score head are a function of its name alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import torch

_LORA = re.compile(r"(layers\.\d+\.\S+?)\.lora_A\b")


def set_start(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> int:
    """Fill LoRA A matrices (B stays 0) and the score head.

    Args:
        parameters: what trains, under any framework's names.

    Returns:
        How many were filled.
    """
    count = 0
    for name, parameter in parameters:
        layer = _LORA.search(name)
        if layer is None and parameter.shape[:1] != (1,):
            continue
        key = layer[1] if layer else "score"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        values = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        with torch.no_grad():
            parameter.copy_(values)
        count += 1
    if not count:
        raise RuntimeError("found no LoRA matrix to start from: the names of parameters have changed")
    return count
