"""Each alarm by itself, on streams of numbers made up for it."""

from __future__ import annotations

import json

import pytest

from posttrain.config import AlarmConfig
from posttrain.errors import UserError
from posttrain.train.alarms import NAMES, Alarms

CALM = {
    "reward_mean": 1.0,
    "reward_std": 2.0,
    "kl_k1": 1.0,
    "response_length": 20.0,
    "repetition": 0.01,
    "entropy": 0.5,
    "ended_share": 0.95,
}


@pytest.fixture
def make_alarms():
    """Alarms with a window of two iterations; keywords are keys."""
    return lambda **keys: Alarms(AlarmConfig(**{"alarm_window": 2, **keys}))


def told(alarms, streams, start=1):
    """(step, name) of every alarm that is raised by what is told, one iteration for each item."""
    raised = []
    for step, stats in enumerate(streams, start=start):
        raised += [(alarm.step, alarm.name) for alarm in alarms.after_step(step, {**CALM, **stats})]
    return raised


def test_a_calm_run_raises_none(make_alarms) -> None:
    alarms = make_alarms()
    assert told(alarms, [{}] * 50) == []
    assert alarms.first_steps == {}
    assert alarms.standing() == []


@pytest.mark.parametrize(
    ("name", "metric", "calm", "loud", "value", "threshold"),
    [
        ("kl", "kl", {"kl_k1": 9.8}, {"kl_k1": 10.2}, 0.51, 0.5),
        ("length_drift", "response_length", {"response_length": 40.0}, {"response_length": 40.2}, 2.01, 2.0),
        ("length_drift", "response_length", {"response_length": 10.0}, {"response_length": 9.8}, 0.49, 2.0),
        ("repetition", "repetition", {"repetition": 0.5}, {"repetition": 0.51}, 0.51, 0.5),
        ("entropy", "entropy", {"entropy": 0.1}, {"entropy": 0.095}, 0.19, 0.2),
        ("no_eos", "ended_share", {"ended_share": 0.5}, {"ended_share": 0.49}, 0.51, 0.5),
    ],
)
def test_beyond_its_threshold_and_not_before(make_alarms, name, metric, calm, loud, value, threshold) -> None:
    """Up to the threshold all is quiet; beyond it the alarm sounds once the window is full of it."""
    quiet = {"alarm_kl": None} if name == "length_drift" else {}
    alarms = make_alarms(**quiet)
    assert told(alarms, [{}, {}, calm, calm, calm]) == []
    assert alarms.after_step(6, {**CALM, **calm}) == []
    raised = [alarm for step in (7, 8, 9) for alarm in alarms.after_step(step, {**CALM, **loud})]
    (alarm,) = raised
    assert (alarm.name, alarm.metric, alarm.threshold) == (name, metric, threshold)
    assert alarms.first_steps == {name: alarm.step}
    assert alarms.standing() == [name]
    (alarm,) = (a for a in make_latest(make_alarms(**quiet), loud) if a.name == name)
    assert alarm.value == pytest.approx(value)
    assert f"(alarm_{name}: {threshold:g})" in alarm.sentence
    assert alarm.sentence.endswith(".")
    assert "\n" not in alarm.sentence


def make_latest(alarms, loud):
    """What is raised by two loud iterations after two calm ones."""
    told(alarms, [{}, {}])
    return [alarm for step in (3, 4) for alarm in alarms.after_step(step, {**CALM, **loud})]


def test_one_outlier_is_averaged_away(make_alarms) -> None:
    alarms = make_alarms(alarm_window=5)
    assert told(alarms, [{}] * 5 + [{"kl_k1": 40.0, "repetition": 1.0, "ended_share": 0.0}] + [{}] * 5) == []


def test_nothing_is_said_before_the_window_is_full(make_alarms) -> None:
    loud = {"kl_k1": 100.0, "repetition": 1.0, "ended_share": 0.0}
    alarms = make_alarms(alarm_window=3)
    assert told(alarms, [loud] * 4) == [(3, "kl"), (3, "repetition"), (3, "no_eos")]


def test_raised_again_only_after_it_was_quiet(make_alarms) -> None:
    loud = {"repetition": 0.9}
    alarms = make_alarms()
    assert told(alarms, [{}, {}, loud, loud, loud, {}, {}, loud, loud]) == [(4, "repetition"), (9, "repetition")]
    assert alarms.first_steps == {"repetition": 4}


@pytest.mark.parametrize("name", NAMES)
def test_null_turns_one_off(make_alarms, name) -> None:
    others = {f"alarm_{other}": None for other in NAMES if other != name}
    loud = {"kl_k1": 1000.0, "response_length": 100.0, "repetition": 1.0, "entropy": 0.01, "ended_share": 0.0}
    streams = [{}, {}, loud | {"reward_mean": 9.0}, loud | {"reward_mean": 9.0}]
    for keys, expected in ((others, [name]), (dict.fromkeys(map("alarm_{}".format, NAMES)), [])):
        alarms = make_alarms(**keys)
        alarms.after_evaluation(0, {"eval_reward": 1.0, "eval_reward_std": 1.0})
        raised = [found for _, found in told(alarms, streams)]
        raised += [alarm.name for alarm in alarms.after_evaluation(4, {"eval_reward": 0.0, "eval_reward_std": 1.0})]
        assert raised == expected


def test_columns_that_are_missing_or_no_numbers_say_nothing(make_alarms) -> None:
    alarms = make_alarms()
    for step in range(1, 5):
        assert alarms.after_step(step, {"loss": 1.0}) == []
        assert alarms.after_step(step, {"entropy": float("nan"), "kl_k1": float("inf"), "response_length": 2.0}) == []
    assert alarms.after_evaluation(4, {"eval_reward": float("nan")}) == []
    json.dumps(alarms.state(), allow_nan=False)


def test_the_penalty_s_own_estimator_does_not_matter(make_alarms) -> None:
    """k3 has heavy tails; without k1 there is only ``kl``."""
    assert told(make_alarms(), [{"kl": 900.0, "kl_k3": 900.0}] * 3) == []
    bare, alarms = {"kl": 900.0, "response_length": 20.0}, make_alarms()
    assert [alarm.name for step in (1, 2) for alarm in alarms.after_step(step, bare)] == ["kl"]


# -- the reward in training against one on held-out prompts ------------------------------------------------------------


def evaluated(alarms, rewards, held, metric="eval_judge_reward", spread=1.0):
    """(step, value) of every gap that is raised: one iteration and one evaluation for each pair."""
    raised = []
    for step, (reward, measure) in enumerate(zip(rewards, held, strict=True), start=1):
        alarms.after_step(step, {**CALM, "reward_mean": reward})
        found = alarms.after_evaluation(step, {metric: measure, f"{metric}_std": spread})
        raised += [(alarm.step, pytest.approx(alarm.value)) for alarm in found]
    return raised


@pytest.mark.parametrize("metric", ["eval_reward", "eval_judge_reward"])
def test_reward_rises_while_the_held_out_one_falls(make_alarms, metric) -> None:
    """By hand: since step 2 the reward rose by (1.5 - 1) / 2, then (2.5 - 1) / 2 deviations, the judge fell by 1."""
    alarms = make_alarms()
    raised = evaluated(alarms, [1.0, 1.0, 2.0, 3.0, 3.0], [4.0, 5.0, 4.0, 4.0, 4.0], metric)
    assert raised == [(4, 0.75)]
    (alarm,) = make_gap(make_alarms, metric)
    assert (alarm.name, alarm.metric, alarm.step) == ("reward_gap", metric, 4)
    assert f"since step 2 the reward in training has risen and {metric} has fallen" in alarm.sentence


def make_gap(make_alarms, metric):
    alarms = make_alarms()
    evaluated(alarms, [1.0, 1.0, 2.0], [4.0, 5.0, 4.0], metric)
    alarms.after_step(4, {**CALM, "reward_mean": 3.0})
    return alarms.after_evaluation(4, {metric: 4.0, f"{metric}_std": 1.0})


@pytest.mark.parametrize(
    ("rewards", "held"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),  # both rise
        ([1, 2, 3, 4, 5], [1, 1, 1, 1, 1]),  # the judge stays
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1]),  # both fall: no sign of a reward that is fooled
        ([1, 1, 1, 1, 1], [5, 4, 3, 2, 1]),  # only the judge falls
        ([1, 2, 3, 4, 5], [5, 4.75, 4.75, 4.75, 4.75]),  # it falls by less than the threshold
    ],
)
def test_no_gap_without_both(make_alarms, rewards, held) -> None:
    assert evaluated(make_alarms(), rewards, held) == []


def test_what_was_measured_before_training_counts(make_alarms) -> None:
    """A judge that falls from the first step on: the reward is compared with that of the first iterations."""
    alarms = make_alarms()
    assert alarms.after_evaluation(0, {"eval_judge_reward": 9.0, "eval_judge_reward_std": 1.0}) == []
    assert evaluated(alarms, [1.0, 2.0, 3.0], [8.0, 7.0, 6.0]) == [(3, (2.5 - 1.5) / 2)]


def test_the_worse_of_two_measures_is_named(make_alarms) -> None:
    alarms = make_alarms()
    stats = {"eval_reward_std": 1.0, "eval_judge_reward_std": 1.0}
    told(alarms, [{}, {}])
    alarms.after_evaluation(2, {**stats, "eval_reward": 5.0, "eval_judge_reward": 5.0})
    told(alarms, [{"reward_mean": 9.0}] * 2, start=3)
    (alarm,) = alarms.after_evaluation(4, {**stats, "eval_reward": 5.1, "eval_judge_reward": 4.0})
    assert (alarm.metric, alarm.value) == ("eval_judge_reward", pytest.approx(1.0))


def test_a_judge_that_never_differed_is_not_divided_by_zero(make_alarms) -> None:
    assert evaluated(make_alarms(), [1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 1.0, 0.0], spread=0.0) == [(4, 0.5)]


def test_quiet_again_when_the_held_out_reward_comes_back(make_alarms) -> None:
    rewards, held = [1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0], [5.0, 5.0, 5.0, 4.0, 5.0, 5.0, 5.0]
    alarms = make_alarms()
    assert [step for step, _ in evaluated(alarms, rewards, held)] == [4]
    assert alarms.standing() == []


# -- checkpoints -------------------------------------------------------------------------------------------------------


def stormy(step):
    """Numbers without a pattern in which every alarm comes and goes."""
    wave = (step * 7919) % 13
    return {
        **CALM,
        "reward_mean": float(step % 5),
        "kl_k1": wave * 3.3,
        "response_length": 5.0 + wave * 6.1,
        "repetition": wave / 12.7,
        "entropy": 0.04 + wave / 26 if step % 10 < 7 else 0.001 * wave,
        "ended_share": 1 - wave / 13,
    }


def storm(alarms, steps):
    raised = []
    for step in steps:
        raised += alarms.after_step(step, stormy(step))
        raised += alarms.after_evaluation(step, {"eval_reward": 0.1 * ((step * 31) % 7), "eval_reward_std": 0.3})
    return raised


@pytest.mark.parametrize("cut", [1, 2, 3, 11, 20])
def test_restored_alarms_go_on_as_if_nothing_had_been(make_alarms, cut) -> None:
    """Through JSON, as checkpoints hold it."""
    whole = make_alarms()
    expected = storm(whole, range(1, 41))
    assert {alarm.name for alarm in expected} == set(NAMES)
    first = make_alarms()
    before = storm(first, range(1, cut + 1))
    second = make_alarms()
    second.restore(json.loads(json.dumps(first.state())))
    assert before + storm(second, range(cut + 1, 41)) == expected
    assert second.state() == whole.state()


def test_a_checkpoint_of_their_own(make_alarms, tmp_path) -> None:
    """As an own loop keeps it."""
    alarms, again = make_alarms(), make_alarms()
    storm(alarms, range(1, 9))
    again.resume(tmp_path)
    assert again.state() == make_alarms().state()
    alarms.save(tmp_path)
    again.resume(tmp_path)
    assert again.state() == alarms.state()
    (tmp_path / "alarms.json").write_text('{"first": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"alarms\.json cannot be read as part of a checkpoint"):
        again.resume(tmp_path)


def test_a_resumed_run_is_judged_by_the_thresholds_that_it_has_now(make_alarms) -> None:
    alarms = make_alarms()
    told(alarms, [{}, {}, {"repetition": 0.8, "kl_k1": 16.0}, {"repetition": 0.8, "kl_k1": 16.0}])
    assert alarms.standing() == ["kl", "repetition"]
    for keys, standing in (({"alarm_repetition": 0.9}, ["kl"]), ({"alarm_kl": None, "alarm_repetition": 0.85}, [])):
        again = make_alarms(**keys)
        again.restore(alarms.state())
        assert again.standing() == standing
