"""One file per algorithm; the registry says which one a stage runs."""

from posttrain.algorithms.bradley_terry import BradleyTerry
from posttrain.algorithms.choice import algorithm_class, make_algorithm
from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.algorithms.cpo import CPO
from posttrain.algorithms.dpo import DPO
from posttrain.algorithms.grpo import GRPO
from posttrain.algorithms.kto import KTO
from posttrain.algorithms.online_dpo import OnlineDPO
from posttrain.algorithms.orpo import ORPO
from posttrain.algorithms.ppo import PPO
from posttrain.algorithms.pretraining import PretrainingLoss
from posttrain.algorithms.protocol import Algorithm, OnlineAlgorithm
from posttrain.algorithms.registry import ALGORITHMS
from posttrain.algorithms.reinforce import Reinforce
from posttrain.algorithms.rejection import RejectionSampling
from posttrain.algorithms.remax import ReMax
from posttrain.algorithms.rloo import RLOO
from posttrain.algorithms.sft import SFT
from posttrain.algorithms.shaped import ShapedRewards, over_tokens
from posttrain.algorithms.simpo import SimPO

__all__ = [
    "ALGORITHMS",
    "CPO",
    "DPO",
    "GRPO",
    "KTO",
    "ORPO",
    "PPO",
    "RLOO",
    "SFT",
    "Algorithm",
    "BradleyTerry",
    "ClippedPolicy",
    "OnlineAlgorithm",
    "OnlineDPO",
    "PretrainingLoss",
    "ReMax",
    "Reinforce",
    "RejectionSampling",
    "ShapedRewards",
    "SimPO",
    "algorithm_class",
    "make_algorithm",
    "over_tokens",
]
