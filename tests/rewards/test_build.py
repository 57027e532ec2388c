"""From the keys of a configuration to the reward."""

from __future__ import annotations

import pytest
import torch

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.rewards import RuleReward, WeightedReward, build_reward

PPO = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "stage": "ppo"}


def role(batch):
    return torch.full((len(batch),), 10.0)


def build(rows=(), share=lambda reward: reward, **keys):
    return build_reward(load_config({**PPO, **keys}), role=role, rows=rows, share=share)


def test_one_source_is_the_reward_itself():
    assert build(reward_model="runs/rm") is role
    assert isinstance(build(reward_funcs="length:1-2"), RuleReward)
    assert isinstance(build(reward_funcs="length:1-2", reward_weights=1), RuleReward)


@pytest.mark.parametrize("keys", [{"reward_weights": 2}, {"reward_part_clip": 1}, {"reward_part_norm": "batch"}])
def test_one_source_that_is_changed_is_a_sum_of_one(keys):
    assert isinstance(build(reward_model="runs/rm", **keys), WeightedReward)


def test_several_sources_add_up_in_the_order_of_their_weights(rollouts, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(completions):\n    return [3.0] * len(completions)\n", encoding="utf-8"
    )
    reward = build(
        reward_model="runs/rm",
        reward_funcs=[f"{tmp_path}/mine.py:score", "regex:a{1,2}", "regex:b"],
        reward_weights=[1, 10, 100, 1000],
    )
    assert reward(rollouts(["a", "b"])).tolist() == [10 + 30 + 100, 10 + 30 + 1000]
    assert list(reward.last) == ["reward_model", "score", "regex", "regex_2"]
    assert reward.last["regex"].tolist() == [1.0, 0.0]


def test_clips_and_norm_reach_the_parts(rollouts):
    keys = {"reward_funcs": ["length:1-", "regex:x"], "reward_part_norm": "batch", "reward_part_clip": "0.5,0"}
    assert build(**keys)(rollouts(["x", ""])).tolist() == pytest.approx([1.5, -1.5])


def test_every_source_but_the_role_is_shared_out_and_the_sum_is_not(rollouts):
    shared = []

    def share(reward):
        shared.append(reward)
        return lambda batch: reward(batch) + 1

    keys = {"reward_model": "runs/rm", "reward_funcs": "regex:x,length:1-", "reward_part_norm": "none"}
    reward = build(share=share, **keys)
    assert reward(rollouts(["x", "y"])).tolist() == [13.0, 12.0]
    assert len(shared) == 2
    assert isinstance(reward, WeightedReward)


def test_the_rows_are_checked_before_time_is_spent():
    with pytest.raises(UserError, match="exact_match cannot judge row 2"):
        build(rows=iter([{"answer": "1"}, {}]), reward_funcs="length:1-2,exact_match")
    build(rows=iter([{"answer": "1"}, {"gold": 2}]), reward_funcs="exact_match,numeric_match")


def test_a_server_in_place_of_a_reward_model_gets_llamafactorys_payload(rollouts, serve):
    with serve(lambda content, headers, number: {"scores": [len(text) for text in content["messages"]]}) as server:
        config = load_config({**PPO, "reward_model": server.url, "reward_model_type": "api"})
        reward = build_reward(config, role=None, rows=[], decode=lambda ids: f"{len(ids)} ids")
        assert reward(rollouts(["abc"], ["p"])).tolist() == [5.0]
    assert server.requests == [{"model": "model", "messages": ["4 ids"]}]


def test_a_server_among_the_functions_gets_our_schema(rollouts, serve):
    with serve(lambda content, headers, number: {"scores": [2.0] * len(content["completions"])}) as server:
        assert build(reward_funcs=server.url)(rollouts(["abc"])).tolist() == [2.0]


def test_what_is_missing_is_said():
    config = load_config({**PPO, "reward_model": "runs/rm"})
    with pytest.raises(UserError, match="reward_model: no model of this command wears it"):
        build_reward(config, role=None, rows=[])
    with pytest.raises(UserError, match=r"there is no file nowhere\.py"):
        build(reward_funcs="nowhere.py:f")
