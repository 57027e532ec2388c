"""What one call of ``accumulate`` adds to a step, remembered until the step is made."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.algorithms import Algorithm
from posttrain.types import Batch


@dataclass(frozen=True)
class Task:
    """Rows and what is to be learned from them; ``max_tokens`` is what all processes dealt them out by."""

    algorithm: Algorithm
    minibatch: Batch
    temperature: float
    max_tokens: int
