"""The engine: the only room that knows how roles are run, stepped and distributed."""

from posttrain.engine.engine import Engine
from posttrain.engine.optimizer import OptimizerSettings

__all__ = ["Engine", "OptimizerSettings"]
