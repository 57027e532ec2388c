"""Where rewards come from: one method, ``reward(batch) -> [B]``."""

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
