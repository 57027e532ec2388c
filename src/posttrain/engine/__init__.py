"""The engine: the only room that knows how roles are run, stepped and distributed."""

from posttrain.engine.engine import Engine, NonFiniteError
from posttrain.engine.limits import SMALLEST, Limits, machine_limits
from posttrain.engine.microbatches import DEFAULT_MAX_TOKENS, dealt
from posttrain.engine.optimizer import OptimizerSettings
from posttrain.engine.processes import Processes, joined
from posttrain.engine.shares import TooLargeError, attempted, release_memory, return_freed_memory
from posttrain.engine.state import DamagedError

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "SMALLEST",
    "DamagedError",
    "Engine",
    "Limits",
    "NonFiniteError",
    "OptimizerSettings",
    "Processes",
    "TooLargeError",
    "attempted",
    "dealt",
    "joined",
    "machine_limits",
    "release_memory",
    "return_freed_memory",
]
