"""Keys of the judge, and the command that needs no model."""

import pytest

from posttrain.config import load_config
from posttrain.config.judge import is_url, scale
from posttrain.errors import UserError

LABEL = {"dataset": "pairs.json", "judge": "http://127.0.0.1:8000/v1", "judge_model": "referee"}
PPO = {"stage": "ppo", "model_name_or_path": "m", "dataset": "d", "output_dir": "o", "reward_funcs": "judge"}


def test_a_scale_is_two_numbers_the_lower_one_first():
    assert scale("1-10") == (1.0, 10.0)
    assert scale(" -1 - 0.5 ") == (-1.0, 0.5)
    for text in ("10", "5-5", "9-1", "a-b", "", "1--"):
        with pytest.raises(ValueError, match="is no scale"):
            scale(text)


def test_an_address_is_told_from_a_folder():
    assert is_url("HTTPS://judge.example/v1")
    assert not any(map(is_url, ["saves/rm", "C:\\models\\rm", "http.d/rm"]))


def test_label_needs_no_model_and_other_commands_do():
    config = load_config(LABEL, command="label")
    assert config.model.model_name_or_path == ""
    assert config.judge.judge_swap
    assert config.judge.judge_mode == "pairwise"
    with pytest.raises(UserError, match="`model_name_or_path` is missing"):
        load_config(LABEL, command="generate")


def test_a_folder_needs_no_name_of_a_model():
    assert load_config({**LABEL, "judge": "saves/rm", "judge_model": None}, command="label").warnings == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"judge": None}, "`judge` is missing"),
        ({"judge_model": None}, "`judge_model` is missing"),
        ({"judge_scale": "1 to 10"}, "`judge_scale: 1 to 10` is no scale"),
        ({"dataset": None}, "`dataset` is missing: label needs questions"),
        ({"judge_mode": "pairs"}, "`judge_mode` must be one of pairwise, pointwise"),
        ({"judge_concurrency": 0}, "`judge_concurrency` must be at least 1"),
    ],
)
def test_what_is_missing_is_said_by_name(change, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config({**LABEL, **change}, command="label")


def test_the_reward_by_a_judge_needs_a_server():
    keys = {key: value for key, value in LABEL.items() if key != "dataset"}
    assert load_config({**PPO, **keys}).judge.judge_model == "referee"
    with pytest.raises(UserError, match="`judge` is missing"):
        load_config(PPO)
    with pytest.raises(UserError, match="belongs into `reward_model`"):
        load_config({**PPO, "judge": "saves/rm"})
