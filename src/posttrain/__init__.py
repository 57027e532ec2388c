"""posttrain: from raw text to an aligned language model, on the machine you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ChatModel",
    "DPOTrainer",
    "KTOTrainer",
    "PPOTrainer",
    "Pretrainer",
    "Response",
    "RewardTrainer",
    "SFTTrainer",
    "SampledResponse",
    "__version__",
    "export_model",
    "run_exp",
]

if TYPE_CHECKING:
    from posttrain.api import (
        ChatModel,
        DPOTrainer,
        KTOTrainer,
        PPOTrainer,
        Pretrainer,
        Response,
        RewardTrainer,
        SampledResponse,
        SFTTrainer,
        export_model,
        run_exp,
    )


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that ``import posttrain`` and the command line's help stay light."""
    if name in __all__:
        from posttrain import api

        return getattr(api, name)
    raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
