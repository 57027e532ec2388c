import json

import pytest

from posttrain.config import load_config
from posttrain.errors import RewardError, UserError
from posttrain.evaluate.run import evaluate
from posttrain.evaluate.win_rate import sign_test


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path):
    """Files of two systems: their answers to the same questions, in the order of the pairs."""

    def write(pairs):
        for place, name in enumerate("ab"):
            rows = [
                {"messages": [{"role": "user", "content": f"q{i}"}], "predict": p[place]} for i, p in enumerate(pairs)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return [f"{name}={tmp_path / name}.jsonl" for name in "ab"]

    return write


def judged(files, server, pairs, **keys):
    values = {
        "task": "win_rate",
        "predictions": files(pairs),
        "judge": server.url,
        "judge_model": "j",
        "judge_retries": 1,
        **keys,
    }
    return evaluate(load_config(values, command="eval"))


PAIRS = [("no", "longer"), ("longer", "no"), ("same!", "SAME!"), ("equal", "equal"), ("a", "much longer")]


def test_a_judge_sees_both_orders_and_ties_are_half_a_win(files, judge_server, longer, tmp_path):
    server = judge_server(longer)
    results = judged(files, server, PAIRS, output_dir=str(tmp_path / "out"))
    found = results["variants"]["b"]
    # b is longer twice, shorter once, as long once, and the same text once, which nobody is asked about
    assert (found["wins"], found["ties"], found["losses"], found["undecided"]) == (2, 2, 1, 0)
    assert found["win_rate"] == pytest.approx(3 / 5)
    assert found["win_rate_interval"][0] < 3 / 5 < found["win_rate_interval"][1]
    assert found["baseline"] == "a"
    assert (found["order_agreement"], found["first_share"], found["longer_share"]) == (1.0, 0.5, 1.0)
    assert found["sign_test_p"] == 1.0
    assert len(server.asked) == 8
    records = lines(tmp_path / "out" / "predictions.jsonl")
    assert [record["verdict"] for record in records] == ["win", "loss", "tie", "tie", "win"]
    assert records[0]["baseline_completion"] == "no"
    assert results["settings"]["judge_model"] == "j"


def test_a_judge_that_likes_the_first_place_decides_nothing(files, judge_server):
    results = judged(files, judge_server(lambda question: "Verdict: A"), PAIRS)
    found = results["variants"]["b"]
    assert (found["wins"], found["ties"], found["losses"]) == (0, 5, 0)
    assert (found["win_rate"], found["order_agreement"], found["first_share"]) == (0.5, 0.0, 1.0)
    alone = judged(files, judge_server(lambda question: "Verdict: A"), PAIRS, judge_swap=False)
    assert (alone["variants"]["b"]["wins"], alone["variants"]["b"]["ties"]) == (4, 1)


def test_questions_without_a_verdict_are_left_out_and_counted(files, judge_server, longer):
    server = judge_server(lambda question: "Hard to say." if "q0" in question else longer(question))
    found = judged(files, server, PAIRS)["variants"]["b"]
    assert (found["wins"], found["undecided"]) == (1, 1)
    assert found["win_rate"] == pytest.approx((1 + 2 / 2) / 4)


def test_a_server_that_refuses_everything_is_one_message(files, judge_server):
    server = judge_server(lambda question: (400, b'{"error": "too long"}'))
    with pytest.raises(UserError, match="judge: the server refuses every question"):
        judged(files, server, PAIRS)


def test_a_judge_is_asked_nothing_twice(files, judge_server, longer, tmp_path):
    state = {"is_broken": True}
    server = judge_server(lambda asked: (500, b"") if state["is_broken"] and "q4" in asked else longer(asked))
    keys = {"judge_retries": 0, "judge_concurrency": 1, "output_dir": str(tmp_path / "out")}
    with pytest.raises(RewardError, match="no answer from"):
        judged(files, server, PAIRS, **keys)
    path = tmp_path / "out" / "verdicts.jsonl"
    answered = len(path.read_text(encoding="utf-8").split("\n")) - 2
    assert answered == 6
    path.write_text(path.read_text(encoding="utf-8") + '{"key": "cut o', encoding="utf-8")
    state["is_broken"], before = False, len(server.asked)
    found = judged(files, server, PAIRS, **keys)
    assert len(server.asked) - before == 8 - answered
    again = judged(files, server, PAIRS, **keys)
    assert len(server.asked) - before == 8 - answered
    assert again["variants"] == found["variants"]
    assert found["variants"]["b"]["wins"] == 2
    judged(files, server, PAIRS, **keys, judge_model="another")
    assert len(server.asked) - before == 8 - answered + 8


def test_a_reward_model_decides_between_models(eval_config, trained, fluent, tiny_data, tmp_path):
    results = evaluate(
        eval_config(
            task="win_rate",
            eval_dataset=str(tiny_data / "prompts.json"),
            variants=["base", f"sft={fluent}"],
            reward_model=str(trained / "rm"),
            max_new_tokens=6,
            output_dir=str(tmp_path / "out"),
        )
    )
    found = results["variants"]["sft"]
    records = lines(tmp_path / "out" / "predictions.jsonl")
    assert len(records) == 12 == found["wins"] + found["ties"] + found["losses"]
    assert found["win_rate"] == pytest.approx((found["wins"] + found["ties"] / 2) / 12)
    assert all(r["score_difference"] == pytest.approx(r["reward"] - r["baseline_reward"]) for r in records)
    assert found["score_difference"] == pytest.approx(sum(r["score_difference"] for r in records) / 12)


def test_a_reward_model_scores_files_as_it_scores_the_models_own_answers(
    eval_config, trained, fluent, tiny_data, tmp_path
):
    keys = {
        "task": "win_rate",
        "eval_dataset": str(tiny_data / "prompts.json"),
        "reward_model": str(trained / "rm"),
        "max_new_tokens": 6,
    }
    asked = evaluate(eval_config(**keys, variants=["base", f"sft={fluent}"], output_dir=str(tmp_path / "asked")))
    records = lines(tmp_path / "asked" / "predictions.jsonl")
    for name, column in (("base", "baseline_completion"), ("sft", "completion")):
        rows = [{"predict": record[column]} for record in records]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    filed = evaluate(eval_config(**keys, predictions=[f"{n}={tmp_path / n}.jsonl" for n in ("base", "sft")]))
    assert filed["items"] == asked["items"]
    assert filed["variants"]["sft"]["win_rate"] == asked["variants"]["sft"]["win_rate"]
    expected = asked["variants"]["sft"]["score_difference"]
    assert filed["variants"]["sft"]["score_difference"] == pytest.approx(expected, abs=1e-4)


def test_small_differences_may_be_ties(eval_config, trained, fluent, tiny_data):
    keys = {"eval_dataset": str(tiny_data / "prompts.json"), "reward_model": str(trained / "rm"), "max_new_tokens": 4}
    variants = ["base", f"sft={fluent}"]
    found = evaluate(eval_config(task="win_rate", variants=variants, judge_min_margin=1e6, **keys))["variants"]["sft"]
    assert (found["ties"], found["win_rate"]) == (12, 0.5)


def test_reward_functions_decide_too(eval_config, fluent):
    config = eval_config(
        task="win_rate",
        variants=["base", f"sft={fluent}"],
        reward_funcs="exact_match",
        max_new_tokens=6,
    )
    found = evaluate(config)["variants"]["sft"]
    assert found["wins"] > 5
    assert found["losses"] == 0


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (4, 1, 12 / 32)]
)
def test_the_sign_test_by_hand(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": ["a"]}, "task win_rate compares at least two"),
        ({"variants": ["a", "b"]}, "needs one who decides"),
        ({"variants": ["a", "b"], "reward_model": "r", "judge": "http://x", "judge_model": "m"}, "keep one of the two"),
        ({"variants": ["a", "b"], "judge": "saves/rm"}, "the folder of a reward model belongs into `reward_model`"),
        ({"variants": ["a", "b"], "judge": "http://x"}, "`judge_model` is missing"),
        ({"predictions": ["a=x"], "reward_model": "r"}, "task win_rate compares at least two"),
    ],
)
def test_who_is_compared_and_who_decides_must_be_said(keys, message):
    with pytest.raises(UserError, match=message):
        load_config({"model_name_or_path": "m", "task": "win_rate", **keys}, command="eval")


def test_predictions_without_what_was_asked_cannot_be_scored_by_a_reward_model(eval_config, trained, fluent, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"predict": "x", "prompt": "<user> q"}\n', encoding="utf-8")
    config = eval_config(
        task="win_rate",
        eval_dataset=None,
        reward_model=str(trained / "rm"),
        predictions=[f"{name}={tmp_path / name}.jsonl" for name in "ab"],
    )
    with pytest.raises(UserError, match="row 1 has no `messages`"):
        evaluate(config)
