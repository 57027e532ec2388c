"""The stages of training, by where their data comes from and which keys concern them."""

from __future__ import annotations

from collections.abc import Mapping

ONLINE_STAGES = ("ppo", "rloo", "grpo", "reinforce", "remax", "online_dpo", "rejection")
"""They sample completions from the policy that they train."""

OFFLINE_STAGES = ("pt", "sft", "rm", "dpo", "kto")
"""They train on a fixed dataset."""

TRAINING_STAGES = (*OFFLINE_STAGES, *ONLINE_STAGES)

GROUP_STAGES: Mapping[str, tuple[str, ...]] = {
    "sft": ("sft",),
    "reward_model": ("rm",),
    "preference": ("dpo", "kto", "online_dpo"),
    "reward": ONLINE_STAGES,
    "online": ONLINE_STAGES,
    "alarms": ONLINE_STAGES,
    "ppo": ("ppo",),
}
"""Groups of keys that concern some stages only."""


def is_online(stage: str) -> bool:
    """Whether the stage samples its own text."""
    return stage in ONLINE_STAGES


def concerns(group: str, stage: str) -> bool:
    """Whether the keys of a group do anything in a stage."""
    return stage in GROUP_STAGES.get(group, (stage,))
