"""Rules about the course of a run: its schedule, its reference, and keys that are taken and do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.run import RunConfig
from posttrain.config.schedules import options_problem, schedule_options
from posttrain.config.stages import is_online

Finding = tuple[str, str]

_IDLE = {
    "dataloader_num_workers": "batches are made in the run itself, from rows that are encoded already",
}


def schedule_problems(config: RunConfig) -> Iterator[Finding]:
    """Options that the schedule does not have, or that it needs."""
    train = config.train
    problem = options_problem(train.lr_scheduler_type, schedule_options(train.lr_scheduler_kwargs))
    if problem is not None:
        key = "lr_scheduler_kwargs" if train.lr_scheduler_kwargs else "lr_scheduler_type"
        yield key, f"`lr_scheduler_kwargs` {problem}"
    if train.eval_delay and train.eval_strategy == "no":
        yield "eval_delay", "`eval_delay` puts off evaluations; set `eval_strategy` to steps or epoch"


def reference_problems(config: RunConfig) -> Iterator[Finding]:
    """A reference of its own where there is none, or where the stage has another."""
    stage, preference = config.method.stage, config.preference
    for key in ("ref_model", "ref_model_adapters"):
        if not config.value(key):
            continue
        if is_online(stage):
            yield (
                key,
                f"`{key}` is for stages dpo and kto; the reference of stage {stage} is the actor as it starts, at no "
                "extra memory: put what it should be into model_name_or_path and adapter_name_or_path",
            )
        elif stage == "dpo" and preference.pref_loss in ("orpo", "cpo", "simpo"):
            yield key, f"`{key}`: pref_loss: {preference.pref_loss} has no reference; remove the line"


def idle_keys(config: RunConfig) -> Iterator[str]:
    """Keys that are accepted and change nothing, where a file sets them to more than their default."""
    for key, reason in _IDLE.items():
        if config.value(key):
            yield f"`{key}: {config.value(key)}` changes nothing: {reason}"
