"""Adafactor as users of transformers have it: at the learning rate given, not scaled by the size of each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

OPTIONS = ("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter", "relative_step", "warmup_init")
"""What ``optim_args`` may set."""


def adafactor(groups: Sequence[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """The optimizer over parameter groups.

    Paper: Shazeer & Stern, 2018 (arXiv:1804.04235). PyTorch's own scales a step by the size of the weight, which leaves
    the B matrices of LoRA, which start at 0, where they are.

    Args:
        groups: with ``lr`` and ``weight_decay``.
        options: of transformers' class.
    """
    from transformers.optimization import Adafactor

    kind: Any = Adafactor
    made: torch.optim.Optimizer = kind(groups, **{"scale_parameter": False, "relative_step": False, **options})
    return made
