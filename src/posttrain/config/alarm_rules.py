"""What cannot work together among the keys of the alarms."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.reward_names import read_reward_name
from posttrain.config.run import RunConfig
from posttrain.config.stages import is_online


def alarm_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(key, sentence) of everything that keeps the alarms of a run from working."""
    if not is_online(config.method.stage):
        return
    alarms = config.alarms
    for text in alarms.alarm_reward_funcs:
        try:
            read_reward_name(text)
        except ValueError as error:
            yield "alarm_reward_funcs", f"`alarm_reward_funcs: {text}` {error}"
    if alarms.alarm_reward_funcs and not (config.data.val_size or config.data.eval_dataset):
        yield (
            "alarm_reward_funcs",
            "`alarm_reward_funcs` are measured on held-out prompts; add `val_size: 0.1` to hold rows out, or name an "
            "`eval_dataset`",
        )
    if alarms.on_alarm == "rollback" and config.train.eval_strategy == "no":
        yield (
            "on_alarm",
            "`on_alarm: rollback` goes back to the best checkpoint, which evaluations tell; set `eval_strategy` to "
            "steps or epoch",
        )


def alarm_cautions(config: RunConfig) -> Iterator[str]:
    """What works, and watches less than it seems to."""
    names = config.alarms.alarm_reward_funcs
    if not names or not is_online(config.method.stage):
        return
    trained = [name for name in names if name in config.reward.reward_funcs]
    if trained:
        yield (
            f"`alarm_reward_funcs: {', '.join(trained)}` is trained on as well, so it cannot tell when the policy "
            "fools it; name another judge"
        )
    if config.train.eval_strategy == "no":
        yield (
            "`alarm_reward_funcs` are measured at the start and at the end only; set `eval_strategy` to notice earlier "
            "when they fall"
        )
