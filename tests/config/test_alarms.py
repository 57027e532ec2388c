"""Keys of the alarms: what cannot work, what watches less than it seems to, and what follows from them."""

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError

PPO = {"stage": "ppo", "model_name_or_path": "m", "dataset": "d", "output_dir": "o", "reward_funcs": "mine.py:score"}
EVALUATED = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2}
SERVER = {"judge": "http://127.0.0.1:1/v1", "judge_model": "m"}


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({**EVALUATED, "alarm_reward_funcs": "regx:a"}, "`alarm_reward_funcs: regx:a` is no reward that there is"),
        ({"alarm_reward_funcs": "json_valid"}, "`alarm_reward_funcs` are measured on held-out prompts; add `val_size"),
        ({"val_size": 4, "on_alarm": "rollback"}, "set `eval_strategy` to steps or epoch"),
        ({"on_alarm": "halt"}, "one of log, stop, rollback"),
        ({"alarm_length_drift": 1.0}, "alarm_length_drift"),
        ({"alarm_entropy": 1.5}, "alarm_entropy"),
        ({"alarm_window": 0}, "alarm_window"),
        ({**EVALUATED, "alarm_reward_funcs": "judge"}, "`judge` is missing"),
        ({**EVALUATED, **SERVER, "alarm_reward_funcs": "judge", "judge": "runs/rm"}, "`judge` must be the URL"),
    ],
)
def test_what_cannot_work_is_refused(keys, part):
    with pytest.raises(UserError) as caught:
        load_config({**PPO, **keys})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({**EVALUATED, "alarm_reward_funcs": "mine.py:score"}, "`alarm_reward_funcs: mine.py:score` is trained on"),
        ({"val_size": 4, "alarm_reward_funcs": "json_valid"}, "at the start and at the end only"),
        (
            {"stage": "sft", "on_alarm": "stop"},
            "`on_alarm` concerns stages that sample and changes nothing in stage sft",
        ),
    ],
)
def test_what_watches_less_than_it_seems_to_is_said(keys, part):
    assert any(part in sentence for sentence in load_config({**PPO, **keys}).warnings)


def test_a_judge_that_is_not_trained_on_is_taken_without_a_word():
    config = load_config({**PPO, **EVALUATED, **SERVER, "alarm_reward_funcs": ["judge", "length:1-9"]})
    assert config.alarms.alarm_reward_funcs == ("judge", "length:1-9")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("keys", "metric"),
    [
        ({}, "eval_reward"),
        ({**EVALUATED, "alarm_reward_funcs": "json_valid"}, "eval_judge_reward"),
        ({**EVALUATED, "alarm_reward_funcs": "json_valid", "metric_for_best_model": "reward"}, "eval_reward"),
        ({**EVALUATED, "alarm_reward_funcs": "json_valid", "stage": "sft"}, "eval_loss"),
    ],
)
def test_best_is_what_the_judge_likes_best(keys, metric):
    assert load_config({**PPO, **keys}).train.metric_for_best_model == metric


def test_every_threshold_can_be_turned_off():
    names = ("kl", "length_drift", "repetition", "entropy", "no_eos", "reward_gap")
    off = load_config({**PPO, **{f"alarm_{name}": None for name in names}}).alarms
    assert all(getattr(off, f"alarm_{name}") is None for name in names)
    assert all(getattr(load_config(PPO).alarms, f"alarm_{name}") is not None for name in names)
