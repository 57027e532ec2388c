"""Rewards before and after a run: the numbers by hand, the right evaluations, a picture that holds both."""

import json

import pytest

from posttrain.train.distribution import difference, summary, write_distribution
from posttrain.train.run import train
from posttrain.train.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def rows(step, rewards):
    return [{"step": step, "number": number, "eval_reward": reward} for number, reward in enumerate(rewards)]


def test_numbers_by_hand():
    assert summary([4.0, 1.0, 2.0, 3.0]) == {
        **{"num_prompts": 4, "mean": 2.5, "std": pytest.approx(1.25**0.5), "min": 1.0, "max": 4.0},
        "quartiles": [1.75, 2.5, 3.25],
    }
    assert summary([2.0])["quartiles"] == [2.0, 2.0, 2.0]
    found = difference([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 3.0, 0.0])  # gains 1, 0, 2, -1: deviation sqrt(5 / 3)
    assert (found["mean"], found["num_better"], found["num_equal"], found["num_worse"]) == (0.5, 2, 1, 1)
    half = 1.959964 * (5 / 3) ** 0.5 / 2
    assert found["interval_95"] == pytest.approx([0.5 - half, 0.5 + half])


def test_the_first_and_the_last_evaluation_are_compared(run):
    run.append_jsonl("eval_completions.jsonl", *rows(0, [1.0, 2.0, 3.0]), *rows(5, [9.0, 9.0, 9.0]))
    run.append_jsonl("eval_completions.jsonl", *rows(8, [7.0, 7.0, 7.0]), *rows(8, [2.0, None, 4.0]))  # best weights
    written = write_distribution(run, plots=False)
    assert [path.name for path in written] == ["reward_distribution.json"]
    found = run.read_json("reward_distribution.json")
    assert found["rewards"] == {"before": [1.0, 3.0], "after": [2.0, 4.0]}
    assert (found["before"]["step"], found["after"]["step"], found["difference"]["mean"]) == (0, 8, 1.0)


def test_one_evaluation_is_no_comparison(run):
    assert write_distribution(run, plots=True) == []
    run.append_jsonl("eval_completions.jsonl", *rows(0, [1.0]))
    assert write_distribution(run, plots=True) == []


def test_an_evaluation_that_a_resumed_run_makes_anew_is_forgotten(run):
    run.append_jsonl("eval_completions.jsonl", *rows(0, [1.0]), *rows(2, [5.0]), *rows(4, [6.0]))
    run.truncate_log(2, evaluated=False)
    assert [row["step"] for row in run.read_jsonl("eval_completions.jsonl")] == [0]


def test_both_sides_are_in_the_picture(run):
    from matplotlib.image import imread

    run.append_jsonl("eval_completions.jsonl", *rows(0, [0.0] * 9 + [0.1]), *rows(3, [1.0] * 10))
    path = write_distribution(run, plots=True)[1]
    picture = imread(path)[..., :3]
    assert picture.shape[:2] == (604, 1036)
    blue = picture[..., 2] - picture[..., 0] > 0.2
    grey = (abs(picture[..., 2] - picture[..., 0]) < 0.12) & (picture[..., 0] > 0.6) & (picture[..., 0] < 0.85)
    middle = picture.shape[1] // 2
    assert blue[150:, middle:].sum() > 5 * blue[150:, :middle].sum()
    assert grey[150:, :middle].sum() > 5 * grey[150:, middle:].sum()


def test_a_run_keeps_what_held_out_prompts_got(tiny_config, tmp_path):
    out = tmp_path / "out"
    keys = {"reward_funcs": ["length:2-4"], "val_size": 4, "max_steps": 2, "plot_loss": True, "save_strategy": "no"}
    results = train(tiny_config("ppo", out, **keys))
    lines = [json.loads(line) for line in (out / "eval_completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["number"]) for line in lines] == [(step, n) for step in (0, 2) for n in range(4)]
    assert all(line["prompt"] and "completion" in line for line in lines)
    found = json.loads((out / "reward_distribution.json").read_text(encoding="utf-8"))
    assert found["before"]["mean"] == pytest.approx(results["eval_reward_before"])
    assert found["after"]["mean"] == pytest.approx(results["eval_reward"])
    assert found["rewards"]["after"] == [line["eval_reward"] for line in lines[4:]]
    assert (out / "reward_distribution.png").is_file()
