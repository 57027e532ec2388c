"""Rules about the keys of the judge."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.judge import is_url, scale
from posttrain.config.run import RunConfig


def judge_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What keeps the judge from being asked: a key, and a sentence about it."""
    settings = config.judge
    if not settings.judge:
        yield (
            "judge",
            "`judge` is missing: name who compares the answers, a server such as `judge: http://127.0.0.1:8000/v1` or "
            "the folder of a reward model",
        )
        return
    if is_url(settings.judge) and not settings.judge_model:
        yield "judge_model", "`judge_model` is missing: the server needs the name of the model that should judge"
    try:
        scale(settings.judge_scale)
    except ValueError:
        yield "judge_scale", f"`judge_scale: {settings.judge_scale}` is no scale; write lowest-highest, such as 1-10"


def judged_reward_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What keeps `judge` among `reward_funcs` or `alarm_reward_funcs` from working."""
    if "judge" not in (*config.reward.reward_funcs, *config.alarms.alarm_reward_funcs):
        return
    yield from judge_problems(config)
    if config.judge.judge and not is_url(config.judge.judge):
        yield (
            "judge",
            "`judge` must be the URL of a server where `reward_funcs` or `alarm_reward_funcs` holds judge; the folder "
            "of a reward model belongs into `reward_model`",
        )


def label_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What keeps `posttrain label` from working."""
    yield from judge_problems(config)
    if not (config.data.dataset or config.data.eval_dataset):
        yield (
            "dataset",
            "`dataset` is missing: label needs questions, or rows with several answers; name an entry of "
            "dataset_info.json or a data file",
        )
