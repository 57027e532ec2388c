"""The course of a run: its steps, the learning rate at each, what is written and measured when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from posttrain.config import RunConfig, is_online
from posttrain.config.schedules import schedule_options
from posttrain.diagnose.findings import Finding
from posttrain.train.schedule import StepsPlan, learning_rate_factor

_COLUMNS = 48
_BARS = " ▁▂▃▄▅▆▇█"
_FEW_STEPS = 10


def course(config: RunConfig, plan: StepsPlan) -> Iterator[Finding]:
    """Learning rate, checkpoints, evaluations and log lines over the steps of the run."""
    yield _schedule(config, plan)
    settings, unit = config.train, "iterations" if is_online(config.method.stage) else "steps"
    every = {"logging_steps": settings.logging_steps}
    if settings.save_strategy == "steps":
        every["save_steps"] = settings.save_steps
    if settings.eval_strategy == "steps":
        every["eval_steps"] = settings.eval_steps or settings.logging_steps
    means = {
        "logging_steps": "no line of metrics is written before the end",
        "save_steps": "no checkpoint is written before the end; an interruption costs all of it",
        "eval_steps": "it is evaluated at its end only",
    }
    for key, value in every.items():
        if value > plan.total:
            yield Finding(
                level="warning",
                check="course",
                message=f"{key} is {value} and the run has {plan.total} {unit}: {means[key]}",
                fix=f"{key}: {max(1, plan.total // 5)}",
            )


def _schedule(config: RunConfig, plan: StepsPlan) -> Finding:
    settings, online = config.train, is_online(config.method.stage)

    def rate(step: int) -> float:
        factor = learning_rate_factor(
            step,
            total=plan.total,
            warmup=plan.warmup,
            kind=settings.lr_scheduler_type,
            learning_rate=settings.learning_rate,
            options=schedule_options(settings.lr_scheduler_kwargs),
        )
        return settings.learning_rate * factor

    rates = [rate(step) for step in range(plan.total)]
    top = max(rates)
    unit = "iterations" if online else "steps"
    message = (
        f"{plan.total} {unit}, {plan.per_epoch} an epoch; {settings.lr_scheduler_type}: {rates[0]:.3g} at first, "
        f"{top:.3g} from {'iteration' if online else 'step'} {rates.index(top) + 1}, {rates[-1]:.3g} at the end"
    )
    finding = Finding(
        level="ok",
        check="learning rate",
        message=message,
        details={"total_steps": plan.total, "warmup_steps": plan.warmup, "peak": top},
        block=(curve(rate, plan.total, settings.learning_rate),),
    )
    if settings.learning_rate == 0 or top == 0:
        return replace(finding, level="error", fix="A learning_rate above 0 and fewer warmup_steps train something")
    if plan.warmup >= plan.total and settings.lr_scheduler_type != "constant":
        fix = f"warmup_ratio: 0.1, or max_steps above {plan.warmup}"
        return replace(finding, level="warning", message=f"{message}; warm-up never ends", fix=fix)
    if plan.total < _FEW_STEPS:
        fix = "More num_train_epochs, or a smaller batch; right for a trial"
        return replace(finding, level="warning", message=f"{message}; so few {unit} teach little", fix=fix)
    return finding


def curve(rate: Callable[[int], float], total: int, top: float) -> str:
    """The learning rate as a line of bars, the highest one being ``top``."""
    columns = min(total, _COLUMNS)
    heights = [rate(i * max(total - 1, 0) // max(columns - 1, 1)) / top if top else 0.0 for i in range(columns)]
    return "".join(_BARS[round(min(height, 1.0) * (len(_BARS) - 1))] for height in heights)
