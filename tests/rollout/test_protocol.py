import pytest

from posttrain.errors import UserError
from posttrain.rollout import Prompt, SamplingParams


@pytest.mark.parametrize(
    "change",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": 9},
        {"min_new_tokens": -1},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_a_value_out_of_range_names_its_key(change):
    good = {"max_new_tokens": 8, "stop_token_ids": (1,), "seed": 0}
    key, value = next(iter(change.items()))
    with pytest.raises(UserError, match=f"{key} is {value}; it must be"):
        SamplingParams(**{**good, **change})


def test_greedy_needs_no_temperature():
    assert SamplingParams(max_new_tokens=1, stop_token_ids=(), seed=0, do_sample=False, temperature=0.0)


def test_prompts_need_tokens_and_samples():
    with pytest.raises(ValueError, match="prompt 3 has no tokens"):
        Prompt(input_ids=(), index=3)
    with pytest.raises(ValueError, match="asks for 0 samples"):
        Prompt(input_ids=(1,), index=3, samples=0)
