"""From the configuration to the reward: the one place that knows every source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from posttrain.config import RunConfig
from posttrain.config.reward_names import RewardName, read_reward_name
from posttrain.config.reward_rules import reward_parts
from posttrain.errors import UserError
from posttrain.rewards.classifier import ClassifierReward
from posttrain.rewards.execution import SqlExecutionReward
from posttrain.rewards.function import FunctionReward
from posttrain.rewards.http import Decode, HttpReward
from posttrain.rewards.judge import JudgeReward
from posttrain.rewards.protocol import Reward
from posttrain.rewards.rules import RuleReward
from posttrain.rewards.weighted import WeightedReward

Notify = Callable[[str], None]


def build_reward(
    config: RunConfig,
    *,
    role: Reward | None,
    rows: Iterable[Mapping[str, Any]],
    share: Callable[[Reward], Reward] = lambda reward: reward,
    decode: Decode | None = None,
    device: str | torch.device = "cpu",
    notify: Notify = lambda sentence: None,
) -> Reward:
    """The reward that a configuration describes: its one source, or the weighted sum of several.

    Args:
        config: see ``RewardConfig``.
        role: scores as ``reward_model`` says, where that is a folder.
        rows: the columns of every prompt's row, which each source checks before time is spent.
        share: wraps every source but ``role``, such as to share its work out among processes.
        decode: token ids -> text with special tokens, for servers that LLaMA-Factory's payload is sent to.
        device: where a classifier runs unless ``reward_device`` says.
        notify: told of completions that count 0.

    Raises:
        UserError: there is no source, one cannot be had, or a row lacks what it reads.
    """
    keys, rows = config.reward, list(rows)
    sources: list[Reward] = []
    if keys.model_folder:
        if role is None:
            raise UserError("reward_model: no model of this command wears it; name another source in reward_funcs")
        sources.append(role)
    elif keys.model_url:
        server = HttpReward.configured(config, keys.model_url, payload="llamafactory", decode=decode, notify=notify)
        sources.append(_checked(server, rows, share))
    if keys.reward_classifier:
        sources.append(_checked(ClassifierReward.configured(config, device), rows, share))
    for text in keys.reward_funcs:
        sources.append(_checked(named_reward(config, _read(text), notify), rows, share))
    if not sources:
        raise UserError("there is no reward: set reward_model, reward_classifier or reward_funcs")
    is_plain = not keys.reward_part_clip and keys.reward_part_norm == "none" and set(keys.reward_weights) <= {1.0}
    if len(sources) == 1 and is_plain:
        return sources[0]
    return WeightedReward(
        dict(zip(reward_parts(keys), sources, strict=True)),
        keys.reward_weights,
        clips=keys.reward_part_clip,
        norm=keys.reward_part_norm,
    )


def named_reward(config: RunConfig, name: RewardName, notify: Notify = lambda sentence: None) -> Reward:
    """The source that one entry of ``reward_funcs`` stands for.

    Raises:
        UserError: it cannot be had.
    """
    if name.kind == "sql_execution":
        return SqlExecutionReward.configured(config)
    if name.kind == "judge":
        return JudgeReward.configured(config, notify)
    if name.kind == "endpoint":
        return HttpReward.configured(config, name.written, notify=notify)
    if name.kind == "function":
        return FunctionReward.configured(config, name.arguments["file"], name.arguments["function"], notify)
    return RuleReward.named(name)


def _read(text: str) -> RewardName:
    try:
        return read_reward_name(text)
    except ValueError as error:
        raise UserError(f"`reward_funcs: {text}` {error}") from None


def _checked(source: Reward, rows: list[Mapping[str, Any]], share: Callable[[Reward], Reward]) -> Reward:
    """The source, shared out; what it can say about the rows beforehand is said now."""
    check = getattr(source, "check", None)
    if check is not None:
        check(rows)
    return share(source)
