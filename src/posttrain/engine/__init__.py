"""The engine: the only room that knows how roles are run, stepped and distributed."""

from posttrain.engine.engine import Engine, NonFiniteError
from posttrain.engine.optimizer import OptimizerSettings

__all__ = ["Engine", "NonFiniteError", "OptimizerSettings"]
