"""One file per algorithm; the registry says which one a stage runs."""

from posttrain.algorithms.bradley_terry import BradleyTerry
from posttrain.algorithms.ppo import PPO
from posttrain.algorithms.protocol import Algorithm, OnlineAlgorithm
from posttrain.algorithms.sft import SFT

ALGORITHMS: dict[str, type[SFT] | type[BradleyTerry] | type[PPO]] = {
    "pt": SFT,
    "sft": SFT,
    "rm": BradleyTerry,
    "ppo": PPO,
}

__all__ = ["ALGORITHMS", "PPO", "SFT", "Algorithm", "BradleyTerry", "OnlineAlgorithm"]
