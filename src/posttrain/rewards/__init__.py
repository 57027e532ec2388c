"""Where rewards come from: one method, ``reward(batch) -> [B]``."""

from posttrain.rewards.execution import SqlExecutionReward
from posttrain.rewards.protocol import Reward
from posttrain.rewards.role import RoleReward
from posttrain.rewards.scripted import ScriptedReward

__all__ = ["Reward", "RoleReward", "ScriptedReward", "SqlExecutionReward"]
