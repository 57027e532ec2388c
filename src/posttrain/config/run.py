"""The whole configuration of a run, and the one flat name space that its keys share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.config.alarms import AlarmConfig
from posttrain.config.hub import HubConfig
from posttrain.config.judge import JudgeConfig
from posttrain.config.method import MethodConfig, PreferenceConfig, RewardModelConfig, SFTConfig
from posttrain.config.model import DataConfig, ModelConfig
from posttrain.config.online import OnlineConfig, PPOConfig
from posttrain.config.options import type_hints
from posttrain.config.rewards import RewardConfig
from posttrain.config.serve import ServeConfig
from posttrain.config.trackers import TrackerConfig
from posttrain.config.train import TrainConfig
from posttrain.config.use import EvalConfig, ExportConfig, GenerationConfig, PredictConfig

Command = Literal["train", "loop", "export", "chat", "generate", "eval", "serve", "label", "data"]

GROUPS: Mapping[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "method": MethodConfig,
    "sft": SFTConfig,
    "reward_model": RewardModelConfig,
    "reward": RewardConfig,
    "preference": PreferenceConfig,
    "online": OnlineConfig,
    "ppo": PPOConfig,
    "alarms": AlarmConfig,
    "generation": GenerationConfig,
    "train": TrainConfig,
    "trackers": TrackerConfig,
    "export": ExportConfig,
    "hub": HubConfig,
    "predict": PredictConfig,
    "judge": JudgeConfig,
    "evaluate": EvalConfig,
    "serve": ServeConfig,
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One configuration key: where it lives, its type, its default and its meaning."""

    name: str
    group: str
    hint: Any
    default: Any
    help: str
    limits: Mapping[str, Any]

    @property
    def required(self) -> bool:
        """True where the key has no default."""
        return self.default is dataclasses.MISSING


def _keys() -> dict[str, Key]:
    found: dict[str, Key] = {}
    for group, config in GROUPS.items():
        hints = type_hints(config)
        for item in dataclasses.fields(config):
            if item.name in found:
                raise TypeError(f"`{item.name}` is declared in {found[item.name].group} and in {group}")
            found[item.name] = Key(
                name=item.name,
                group=group,
                hint=hints[item.name],
                default=item.default,
                help=item.metadata["help"],
                limits=item.metadata,
            )
    return found


KEYS: Mapping[str, Key] = _keys()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a command needs to know, fully resolved.

    Attributes:
        sources: key -> where it was set (``sft.yaml, line 7``; ``command line``); keys at their default are absent.
        warnings: sentences for the user about keys that were adapted, ignored or look unintended.
    """

    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    sft: SFTConfig
    reward_model: RewardModelConfig
    reward: RewardConfig
    preference: PreferenceConfig
    online: OnlineConfig
    ppo: PPOConfig
    alarms: AlarmConfig
    generation: GenerationConfig
    train: TrainConfig
    trackers: TrackerConfig
    export: ExportConfig
    hub: HubConfig
    predict: PredictConfig
    judge: JudgeConfig
    evaluate: EvalConfig
    serve: ServeConfig
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], *, sources: Mapping[str, str], warnings: tuple[str, ...]
    ) -> RunConfig:
        """Build it from flat keys whose values have their types already; missing keys take their default."""
        groups = {
            name: group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values})
            for name, group in GROUPS.items()
        }
        return cls(**groups, sources=dict(sources), warnings=warnings)

    def value(self, key: str) -> Any:
        """The value of a flat key."""
        return getattr(getattr(self, KEYS[key].group), key)

    def to_flat(self) -> dict[str, Any]:
        """Every key with its value, in plain YAML types; loading it gives an equal configuration."""
        flat = {key: self.value(key) for key in KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}
