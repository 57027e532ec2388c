"""Keys of what a completion is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a completion is worth in the online stages: a reward model, functions, or several together."""

    reward_model: str | None = option(None, help="Folder of the reward model that stage rm wrote.", path=True)
    reward_model_type: Literal["lora", "full"] | None = option(
        None, help="What `reward_model` must be, lora: an adapter, full: a whole model; null takes either."
    )
    reward_funcs: tuple[str, ...] = option(
        (),
        help="Rewards that need no model. sql_execution runs the completion on the database that its row names: 1 "
        "for the rows of the reference, 0.2 for SQL that runs, else 0.",
        path=True,
    )
