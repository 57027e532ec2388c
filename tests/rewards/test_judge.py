"""A chat model as judge, and its scores as a reward."""

import pytest
import torch

from posttrain.config import load_config
from posttrain.errors import RewardError, UserError
from posttrain.rewards.judge import Judge, JudgeReward
from posttrain.rewards.judge_client import ChatClient
from posttrain.rewards.verdicts import judge_prompt
from posttrain.types import RolloutBatch


def judge(server, mode="pairwise", language="en", attempts=3, **keys):
    client = ChatClient(server.url, "referee", first_pause_s=0.01, retries=1)
    return Judge(client, judge_prompt(mode, language), attempts=attempts, **keys)


def batch(completions, **columns):
    size = len(completions)
    return RolloutBatch(
        input_ids=torch.zeros(size, 3, dtype=torch.long),
        attention_mask=torch.ones(size, 3, dtype=torch.bool),
        loss_mask=torch.ones(size, 3, dtype=torch.bool),
        logprobs=torch.zeros(size, 3),
        ended=torch.ones(size, dtype=torch.bool),
        prompts=("<|user|>Name a fruit.",) * size,
        completions=tuple(completions),
        extras=({},) * size,
        **columns,
    )


def test_two_answers_are_compared_in_the_order_given(judge_server, longer):
    referee = judge(judge_server(longer))
    assert referee.compare("q", "long one", "short").value == "A"
    assert referee.compare("q", "short", "long one").value == "B"
    opinion = referee.compare("q", "same", "size")
    assert opinion.value == "tie"
    assert opinion.text.startswith("I counted.")


def test_an_answer_is_rated_on_the_scale_it_is_told(judge_server):
    server = judge_server(lambda question: "Score: 85")
    referee = judge(server, "pointwise", scale=(0.0, 100.0))
    assert referee.rate("q", "a").value == 85.0
    assert "from 0 (useless) to 100" in server.asked[0]
    assert judge(server, "pointwise", attempts=1).rate("q", "a").value is None


def test_a_judge_that_answers_nonsense_is_asked_again_with_a_reminder_and_not_for_ever(judge_server):
    replies = iter(["Hard to say.", "Both!", "Verdict: B"])
    server = judge_server(lambda question: next(replies))
    assert judge(server).compare("q", "x", "y").value == "B"
    assert "held no verdict" not in server.asked[0]
    assert all("held no verdict" in question for question in server.asked[1:])
    babbling = judge_server(lambda question: "Hard to say.")
    opinion = judge(babbling, attempts=4).compare("q", "x", "y")
    assert (opinion.value, opinion.text, opinion.refusal) == (None, "Hard to say.", "")
    assert len(babbling.asked) == 4


def test_the_chinese_prompt_is_asked_and_answered_in_chinese(judge_server):
    server = judge_server(lambda question: "第二个更准确。\n结论：B" if "提出请求的人" in question else "?")
    assert judge(server, language="zh").compare("列出水果", "无", "苹果").value == "B"


def test_a_refused_question_is_an_opinion_without_a_value(judge_server):
    opinion = judge(judge_server(lambda question: (400, b"too long"))).compare("q", "x", "y")
    assert opinion.value is None
    assert "too long" in opinion.refusal


def test_the_reward_is_the_judges_score_of_each_completion(judge_server, longer):
    server = judge_server(longer)
    reward = JudgeReward(judge(server, "pointwise"), concurrency=3)
    scores = reward(batch(["fig", "a", "a pear", "a very long list of fruit"]))
    assert scores.tolist() == [3.0, 1.0, 6.0, 10.0]
    assert scores.dtype == torch.float32
    assert all("<|user|>Name a fruit." in question for question in server.asked)


def test_the_reward_shows_the_chat_where_the_rollout_has_it(judge_server, longer):
    server = judge_server(longer)
    chat = ({"role": "user", "content": "Name a fruit."},)
    JudgeReward(judge(server, "pointwise"), system="Be brief.")(batch(["fig"], messages=(chat,)))
    assert "[System]\nBe brief.\n\n[User]\nName a fruit.\n=== end" in server.asked[0]


def test_a_completion_without_a_score_stops_the_run_or_counts_zero(judge_server, longer):
    server = judge_server(lambda question: "no idea" if "plum" in question else longer(question))
    rows = batch(["fig", "plum", "a pear"])
    with pytest.raises(RewardError, match=r"the judge referee gave 'no idea' for completion 2 of 3 \('plum'\)"):
        JudgeReward(judge(server, "pointwise"))(rows)
    told = []
    lenient = JudgeReward(judge(server, "pointwise"), on_error="zero", notify=told.append)
    assert lenient(rows).tolist() == [3.0, 0.0, 6.0]
    assert len(told) == 1


def test_a_server_that_dies_or_locks_us_out_in_the_middle_stops_the_run_with_a_checkpoint(judge_server, longer):
    server = judge_server(longer)
    reward = JudgeReward(judge(server, "pointwise"))
    assert reward(batch(["fig"])).tolist() == [3.0]
    server.close()
    with pytest.raises(RewardError, match="no answer from"):
        reward(batch(["fig"]))
    replies = iter([longer, lambda question: (401, b"expired")])
    server = judge_server(lambda question: next(replies)(question))
    reward = JudgeReward(judge(server, "pointwise"))
    reward(batch(["fig"]))
    with pytest.raises(RewardError, match="401"):
        reward(batch(["fig"]))


def test_a_server_that_refuses_from_the_start_is_bad_input(judge_server):
    with pytest.raises(UserError, match="401"):
        JudgeReward(judge(judge_server(lambda question: (401, b"who?")), "pointwise"))(batch(["fig"]))


def test_it_is_configured_by_the_keys_of_the_judge(judge_server, longer):
    keys = {"stage": "ppo", "model_name_or_path": "m", "dataset": "d", "output_dir": "o", "reward_funcs": "judge"}
    server = judge_server(longer)
    config = load_config({**keys, "judge": server.url, "judge_model": "referee", "judge_scale": "1-5"})
    assert JudgeReward.configured(config)(batch(["fig"])).tolist() == [3.0]
    assert "to 5 (nothing to improve)" in server.asked[0]
    with pytest.raises(UserError, match="`judge` is missing"):
        load_config(keys)
    with pytest.raises(UserError, match="belongs into `reward_model`"):
        load_config({**keys, "judge": "saves/rm"})
