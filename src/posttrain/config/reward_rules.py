"""What cannot work together among the keys of rewards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.config.reward_names import check_url, distinct, is_url, read_reward_name
from posttrain.config.rewards import RewardConfig

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_CLASSIFIER = ("reward_label", "reward_template", "reward_device")


def reward_parts(reward: RewardConfig) -> list[str]:
    """Names of the parts of the reward, in the order of ``reward_weights``; what cannot be read keeps its text."""
    labels = [name for name in ("reward_model", "reward_classifier") if getattr(reward, name)]
    for text in reward.reward_funcs:
        try:
            labels.append(read_reward_name(text).label)
        except ValueError:
            labels.append(text)
    return distinct(labels)


def reward_problems(reward: RewardConfig, stage: str) -> Iterator[tuple[str, str]]:
    """(key, sentence) of everything that keeps a stage from being rewarded."""
    parts = reward_parts(reward)
    if not parts:
        yield (
            "reward_model",
            f"`reward_model` is missing: stage {stage} needs the folder that stage rm wrote; add a line such as "
            "`reward_model: runs/rm`, or name another source in `reward_funcs` or `reward_classifier`",
        )
    yield from _names(reward)
    yield from _addresses(reward)
    yield from _numbers(reward, parts)
    if reward.reward_ensemble and not reward.model_folder:
        yield "reward_ensemble", "`reward_ensemble` goes with `reward_model`, which is its first member; add that"
    if reward.reward_disagreement_coef and not reward.reward_ensemble:
        yield "reward_disagreement_coef", "`reward_disagreement_coef` needs an ensemble; name it in `reward_ensemble`"
    if not reward.reward_classifier:
        for key in _OF_CLASSIFIER:
            if getattr(reward, key):
                yield key, f"`{key}` is about `reward_classifier`, which is not set; remove it"
    if reward.reward_token_env and not _ENVIRONMENT_NAME.fullmatch(reward.reward_token_env):
        yield (
            "reward_token_env",
            "`reward_token_env` must be the name of an environment variable such as REWARD_TOKEN; the token itself "
            "does not belong into a file that is copied into output_dir",
        )


def _names(reward: RewardConfig) -> Iterator[tuple[str, str]]:
    for text in reward.reward_funcs:
        try:
            read_reward_name(text)
        except ValueError as error:
            yield "reward_funcs", f"`reward_funcs: {text}` {error}"


def _addresses(reward: RewardConfig) -> Iterator[tuple[str, str]]:
    model, kind = reward.reward_model, reward.reward_model_type
    if model and is_url(model):
        try:
            check_url(model)
        except ValueError as error:
            yield "reward_model", f"`reward_model` {error}"
        if kind not in (None, "api"):
            yield "reward_model_type", f"`reward_model_type: {kind}` is a folder, but `reward_model` is an address"
    elif kind == "api" and model:
        yield (
            "reward_model",
            f"`reward_model: {model}` is no address, which `reward_model_type: api` asks for; write, for example, "
            "http://127.0.0.1:8000/v1/score/evaluation",
        )


def _numbers(reward: RewardConfig, parts: list[str]) -> Iterator[tuple[str, str]]:
    weights, clips = reward.reward_weights, reward.reward_part_clip
    if weights and len(weights) != len(parts):
        yield (
            "reward_weights",
            f"`reward_weights` has {len(weights)} numbers, but the reward has {len(parts)}: {', '.join(parts)}",
        )
    elif weights and not any(weights):
        yield "reward_weights", "`reward_weights` are all 0; nothing would be rewarded"
    if len(clips) > 1 and len(clips) != len(parts):
        yield (
            "reward_part_clip",
            f"`reward_part_clip` has {len(clips)} numbers, but the reward has {len(parts)}: {', '.join(parts)}; give "
            "one for all or one for each",
        )
    if any(clip < 0 for clip in clips):
        yield "reward_part_clip", "`reward_part_clip` must not be below 0; a part is clipped on both sides"
