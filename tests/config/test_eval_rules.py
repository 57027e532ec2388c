"""What an evaluation asks of its configuration."""

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError


def refused(**keys):
    with pytest.raises(UserError) as caught:
        load_config({"model_name_or_path": "m", **keys}, command="eval")
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "loss", "predictions": "a.jsonl"}, "`predictions` is for tasks sql, generation, match, win_rate"),
        ({"task": "match", "predictions": "a.jsonl", "variants": "base"}, "keep one of the two"),
        ({"task": "match", "match_pattern": "("}, "`match_pattern: (` is no regular expression"),
        ({"task": "match", "match_pattern": "(a)(b)"}, "has 2 groups"),
        ({"task": "frontier", "reward_model": "r"}, "`checkpoints_of` is missing"),
        ({"task": "frontier", "checkpoints_of": "saves/ppo"}, "`reward_model` is missing"),
        (
            {"task": "frontier", "checkpoints_of": "saves/ppo", "reward_model": "r", "variants": "base"},
            "`variants` are the checkpoints",
        ),
        ({"task": "lm_eval"}, "`lm_eval_tasks` is missing"),
        ({"task": "rouge"}, "one of perplexity, loss, reward, sql, generation, match"),
    ],
)
def test_what_cannot_work_is_said(keys, message):
    assert message in refused(**keys)


def test_what_changes_nothing_is_said():
    keys = {"model_name_or_path": "m", "task": "match", "num_return_sequences": 4}
    assert any("draws one answer to each prompt" in each for each in load_config(keys, command="eval").warnings)
    grpo = load_config({"model_name_or_path": "m", "stage": "grpo", "task": "match"}, command="eval")
    assert grpo.warnings == ()
    judged = {"model_name_or_path": "m", "task": "win_rate", "variants": "a,b", "judge": "http://x", "judge_model": "m"}
    warnings = load_config({**judged, "judge_mode": "pointwise"}, command="eval").warnings
    assert any("always asks which of two" in each for each in warnings)
    assert load_config(judged, command="eval").warnings == ()


def test_predictions_need_no_model():
    config = load_config({"task": "match", "predictions": "a=a.jsonl,b=b.jsonl"}, command="eval")
    assert config.evaluate.predictions == ("a=a.jsonl", "b=b.jsonl")
    with pytest.raises(UserError, match="`model_name_or_path` is missing"):
        load_config({"task": "match"}, command="eval")


def test_a_frontier_draws_from_the_policy_itself():
    keys = {"model_name_or_path": "m", "task": "frontier", "checkpoints_of": "x", "reward_model": "r"}
    drawn = load_config(keys, command="eval").generation
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.top_k) == (True, 1.0, 1.0, 0)
    assert load_config({**keys, "do_sample": False}, command="eval").generation.do_sample is False
    assert load_config({"model_name_or_path": "m", "task": "match"}, command="eval").generation.do_sample is False
