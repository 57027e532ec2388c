"""Preference pairs from a model's own answers."""

from posttrain.data.encode import EncodedPrompt
from posttrain.data.formats import Message, guess_layout, pair_example
from posttrain.serve.pairs import preference_pairs


def prompt(question, right):
    return EncodedPrompt(
        input_ids=[1], text=question, messages=(Message("user", question),), extras={"right": right, "gold": right}
    )


def judge(row, answer, number):
    return 1.0 if answer in (row["right"], row["right"] + ";") else 0.2


def made(*prompts_and_answers):
    prompts, answers = zip(*prompts_and_answers, strict=True)
    return preference_pairs(prompts, answers, judge, lambda row, number: row["gold"])


def test_wrong_answers_stand_below_right_ones_of_the_same_prompt():
    rows = made((prompt("q1", "A"), ["x", "A;", "y"]), (prompt("q2", "B"), ["z", "z", "z"]))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("A;", "x"), ("A;", "y"), ("B", "z")]
    assert rows[0]["prompt"] == [{"role": "user", "content": "q1"}]


def test_prompts_that_are_all_right_give_nothing_and_none_gives_more_than_two():
    assert made((prompt("q", "A"), ["A", "A;"])) == []
    rows = made((prompt("q", "A"), ["u", "A", "v", "A;", "w"]))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("A", "u"), ("A;", "v")]


def test_the_rows_are_read_back_as_pairs():
    row = made((prompt("q", "A"), ["x"]))[0]
    pair = pair_example(row, guess_layout(row, "row 1"), "row 1")
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "q"),), "A", "x")
