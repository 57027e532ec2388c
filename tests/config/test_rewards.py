"""The keys of rewards: names, numbers, addresses, and what cannot go together."""

import pytest

from posttrain.config import load_config
from posttrain.config.reward_rules import reward_parts
from posttrain.errors import UserError

PPO = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "stage": "ppo"}
RULES = {**PPO, "reward_funcs": "json_valid,length:1-9"}


def test_several_names_are_a_list_or_separated_by_commas():
    written = load_config({**PPO, "reward_funcs": "sql_execution, judge.py:f ,https://host/score"})
    assert written.reward.reward_funcs == ("sql_execution", "judge.py:f", "https://host/score")
    listed = load_config({**PPO, "reward_funcs": ["regex:a{1,3}", "repetition"]})
    assert listed.reward.reward_funcs == ("regex:a{1,3}", "repetition")


def test_a_reward_model_and_functions_go_together():
    config = load_config({**RULES, "reward_model": "r", "reward_classifier": "c", "reward_weights": "1,0.5,2,-1"})
    assert config.reward.reward_weights == (1.0, 0.5, 2.0, -1.0)
    assert reward_parts(config.reward) == ["reward_model", "reward_classifier", "json_valid", "length"]


def test_parts_of_one_name_are_numbered():
    config = load_config({**PPO, "reward_funcs": ["regex:a", "a.py:regex", "regex:b"]})
    assert reward_parts(config.reward) == ["regex", "regex_2", "regex_3"]


def test_numbers_survive_being_written_and_read_again():
    config = load_config({**RULES, "reward_weights": [1, 0.25], "reward_part_clip": 3})
    assert load_config(config.to_flat()) == config
    assert load_config(config.to_flat()).reward.reward_part_clip == (3.0,)


def test_an_address_is_llamafactorys_reward_server():
    url = "http://127.0.0.1:8000/v1/score/evaluation"
    for keys in ({"reward_model_type": "api"}, {}):
        reward = load_config({**PPO, "reward_model": url, **keys}).reward
        assert (reward.model_url, reward.model_folder) == (url, None)
    folder = load_config({**PPO, "reward_model": "runs/rm"}).reward
    assert (folder.model_url, folder.model_folder) == (None, "runs/rm")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "`reward_model` is missing"),
        ({"reward_funcs": "lenght:1-2"}, "`reward_funcs: lenght:1-2` is no reward that there is; did you mean length?"),
        ({"reward_funcs": "regex:a{1,3}"}, "A name with a comma in it is written as an item of a list"),
        ({"reward_funcs": "http://me:pw@host/"}, "which would be copied into output_dir"),
        ({"reward_model": "r", "reward_model_type": "api"}, "`reward_model: r` is no address"),
        ({"reward_model": "http://h/", "reward_model_type": "lora"}, "`reward_model_type: lora` is a folder"),
        ({"reward_model": "https://me:pw@h/"}, "`reward_model` holds a user or password"),
        ({"reward_funcs": "json_valid", "reward_weights": "1,2"}, "has 2 numbers, but the reward has 1: json_valid"),
        ({"reward_funcs": "json_valid", "reward_weights": 0}, "are all 0"),
        ({"reward_funcs": "json_valid", "reward_weights": "one"}, "`reward_weights` must be numbers, separated by"),
        ({"reward_funcs": "json_valid", "reward_part_clip": "1,2,3"}, "has 3 numbers, but the reward has 1"),
        ({"reward_funcs": "json_valid", "reward_part_clip": -1}, "must not be below 0"),
        ({"reward_funcs": "json_valid", "reward_label": "x"}, "is about `reward_classifier`, which is not set"),
        ({"reward_funcs": "json_valid", "reward_token_env": "Bearer abc"}, "the token itself does not belong"),
        ({"reward_funcs": "json_valid", "reward_time_limit": 0}, "must be above 0"),
        ({"reward_funcs": "json_valid", "reward_on_error": "ignore"}, "must be one of stop, zero"),
    ],
)
def test_what_cannot_work_says_why(keys, words):
    with pytest.raises(UserError) as caught:
        load_config({**PPO, **keys})
    assert words in str(caught.value)


def test_an_empty_time_limit_waits_for_ever():
    assert load_config({**RULES, "reward_time_limit": None}).reward.reward_time_limit is None
