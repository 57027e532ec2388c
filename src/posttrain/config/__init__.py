"""Flat configuration files to small frozen dataclasses, with errors that say what to write instead."""

from posttrain.config.alarms import AlarmConfig
from posttrain.config.defaults import stage_defaults
from posttrain.config.loader import load_config
from posttrain.config.method import MethodConfig, PreferenceConfig, RewardModelConfig, SFTConfig
from posttrain.config.model import DataConfig, ModelConfig
from posttrain.config.online import OnlineConfig, PPOConfig
from posttrain.config.pipeline import PipelineConfig, PipelineStage, PreparedData, load_pipeline
from posttrain.config.reference import reference_markdown
from posttrain.config.rewards import RewardConfig
from posttrain.config.run import KEYS, Command, Key, RunConfig
from posttrain.config.serve import ServeConfig
from posttrain.config.stages import is_online
from posttrain.config.trackers import TrackerConfig
from posttrain.config.train import TrainConfig
from posttrain.config.use import EvalConfig, ExportConfig, GenerationConfig, PredictConfig

__all__ = [
    "KEYS",
    "AlarmConfig",
    "Command",
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "GenerationConfig",
    "Key",
    "MethodConfig",
    "ModelConfig",
    "OnlineConfig",
    "PPOConfig",
    "PipelineConfig",
    "PipelineStage",
    "PredictConfig",
    "PreferenceConfig",
    "PreparedData",
    "RewardConfig",
    "RewardModelConfig",
    "RunConfig",
    "SFTConfig",
    "ServeConfig",
    "TrackerConfig",
    "TrainConfig",
    "is_online",
    "load_config",
    "load_pipeline",
    "reference_markdown",
    "stage_defaults",
]
