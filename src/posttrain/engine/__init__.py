"""The engine: the only room that knows how roles are run, stepped and distributed."""

from posttrain.engine.engine import Engine, NonFiniteError
from posttrain.engine.optimizer import OptimizerSettings
from posttrain.engine.state import DamagedError

__all__ = ["DamagedError", "Engine", "NonFiniteError", "OptimizerSettings"]
