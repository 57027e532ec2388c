"""Keys of the alarms: what a run that samples its own text is watched for, and what happens then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """Signs that the policy pleases the reward and nobody else, each a mean over `alarm_window` iterations; a
    threshold of null turns one off."""

    on_alarm: Literal["log", "stop", "rollback"] = option(
        "log",
        help="log: say it and go on; stop: end there with a checkpoint and exit status 1; rollback: end there with the "
        "best checkpoint from before.",
    )
    alarm_window: int = option(5, help="Iterations that a value is averaged over, so that one cannot ring.", minimum=1)
    alarm_kl: float | None = option(0.5, help="KL to the reference per token, in nats.", above=0)
    alarm_length_drift: float | None = option(
        2.0, help="How many times longer, or shorter, answers are than in the first iterations.", above=1
    )
    alarm_repetition: float | None = option(
        0.5,
        help="Share of runs of ten characters that have occurred before in the same answer.",
        above=0,
        below=1,
    )
    alarm_entropy: float | None = option(
        0.2, help="Entropy as a share of that of the first iterations, below which it has collapsed.", above=0, below=1
    )
    alarm_no_eos: float | None = option(
        0.5, help="Share of answers that do not end but are cut at `max_new_tokens`.", minimum=0, below=1
    )
    alarm_reward_gap: float | None = option(
        0.3,
        help="Standard deviations by which the reward in training has risen and one on held-out prompts has fallen "
        "since the latter's best.",
        above=0,
    )
    alarm_reward_funcs: tuple[str, ...] = option(
        (),
        help="Rewards that are not trained on but measured on held-out prompts, as `eval_judge_reward`: names as in "
        "`reward_funcs`, added up where there are several.",
        path=True,
    )
