"""From hidden states to logits, exactly as the model's own forward would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_SCALING_MULTIPLIES = ("hyperclovax",)  # everyone else divides by ``logits_scaling``


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """The output head with its family's scale and soft-cap.

    Args:
        model: a causal language model of transformers.
        hidden: [N, D], the trunk's last hidden states.

    Returns:
        [N, V].
    """
    config = model.config.get_text_config()
    logits: Tensor = model.get_output_embeddings()(hidden)
    scale = logit_scale(config)
    if scale != 1.0:
        logits = logits * scale
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits


def logit_scale(config: Any) -> float:
    """The constant factor that a family puts on its logits (Cohere multiplies, Granite divides); 1 for most."""
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= getattr(config, name, None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return scale * divisor if config.model_type.startswith(_SCALING_MULTIPLIES) else scale / divisor
