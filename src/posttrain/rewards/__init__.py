"""Where rewards come from: one method, ``reward(batch) -> [B]``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.rewards.apart import Begun, Job, begin, job
    from posttrain.rewards.build import build_reward
    from posttrain.rewards.classifier import ClassifierReward
    from posttrain.rewards.ensemble import EnsembleReward
    from posttrain.rewards.execution import SqlExecutionReward
    from posttrain.rewards.function import FunctionReward
    from posttrain.rewards.http import HttpReward
    from posttrain.rewards.protocol import Reward
    from posttrain.rewards.role import RoleReward
    from posttrain.rewards.rules import RuleReward
    from posttrain.rewards.scripted import ScriptedReward
    from posttrain.rewards.weighted import WeightedReward, measured

_MODULES = {
    "apart": ("Begun", "Job", "begin", "job"),
    "build": ("build_reward",),
    "classifier": ("ClassifierReward",),
    "ensemble": ("EnsembleReward",),
    "execution": ("SqlExecutionReward",),
    "function": ("FunctionReward",),
    "http": ("HttpReward",),
    "protocol": ("Reward",),
    "role": ("RoleReward",),
    "rules": ("RuleReward",),
    "scripted": ("ScriptedReward",),
    "weighted": ("WeightedReward", "measured"),
}

__all__ = [
    "Begun",
    "ClassifierReward",
    "EnsembleReward",
    "FunctionReward",
    "HttpReward",
    "Job",
    "Reward",
    "RoleReward",
    "RuleReward",
    "ScriptedReward",
    "SqlExecutionReward",
    "WeightedReward",
    "begin",
    "build_reward",
    "job",
    "measured",
]


def __getattr__(name: str) -> Any:
    """Names load on first use: processes that run SQL stand below this package and need no torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"posttrain.rewards.{module}"), name)
    raise AttributeError(f"module 'posttrain.rewards' has no attribute {name!r}")
