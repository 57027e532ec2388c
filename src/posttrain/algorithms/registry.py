"""The registry: which algorithm a stage, or a ``pref_loss`` of stage dpo, runs."""

from __future__ import annotations

from posttrain.algorithms.bradley_terry import BradleyTerry
from posttrain.algorithms.cpo import CPO
from posttrain.algorithms.dpo import DPO
from posttrain.algorithms.grpo import GRPO
from posttrain.algorithms.kto import KTO
from posttrain.algorithms.online_dpo import OnlineDPO
from posttrain.algorithms.orpo import ORPO
from posttrain.algorithms.ppo import PPO
from posttrain.algorithms.reinforce import Reinforce
from posttrain.algorithms.rejection import RejectionSampling
from posttrain.algorithms.remax import ReMax
from posttrain.algorithms.rloo import RLOO
from posttrain.algorithms.sft import SFT
from posttrain.algorithms.simpo import SimPO

ALGORITHMS: dict[str, type] = {
    "pt": SFT,
    "sft": SFT,
    "rm": BradleyTerry,
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "reinforce": Reinforce,
    "remax": ReMax,
    "online_dpo": OnlineDPO,
    "rejection": RejectionSampling,
    "dpo": DPO,
    "orpo": ORPO,
    "cpo": CPO,
    "simpo": SimPO,
    "kto": KTO,
}
