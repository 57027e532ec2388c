import dataclasses

import pytest

from posttrain.data.formats import Message
from posttrain.data.sources import read_rows
from posttrain.errors import UserError
from posttrain.evaluate.completions import Completed
from posttrain.evaluate.sql_task import score

NOTHING = "SELECT 1 WHERE 0"


@pytest.fixture(scope="module")
def prompts(sql_data):
    from posttrain.data.encode import EncodedPrompt

    rows = read_rows(sql_data / "heldout.jsonl", name="heldout")
    return [
        EncodedPrompt(input_ids=[1], text="", messages=(Message("user", row["instruction"]),), extras=row)
        for row in rows
    ]


@pytest.fixture
def config(eval_config, sql_data):
    return eval_config(dataset_dir=str(sql_data))


def answers(texts, rewards=None, kls=None):
    size = len(texts)
    return Completed(texts=tuple(texts), lengths=(3,) * size, ended=(True,) * size, rewards=rewards, kls=kls)


def scored(config, prompts, **completed):
    return score(config, prompts, completed, lambda *call: None)


def test_right_wrong_and_broken_sql_are_told_apart(config, prompts):
    golds = [prompt.extras["output"] for prompt in prompts]
    texts = [f"```sql\n{golds[0]}\n```", golds[1].lower(), "SELECT nothing FROM nowhere", *[NOTHING] * 3]
    metrics, _, records = scored(config, prompts, sft=answers(texts))
    found = metrics["sft"]
    right = sum(record["correct"] for record in records)
    assert records[0]["correct"]
    assert not records[2]["valid"]
    assert found["execution_accuracy"] == right / 6
    assert found["valid_rate"] == 5 / 6
    assert found["execution_accuracy_interval"][0] < right / 6 < found["execution_accuracy_interval"][1]
    assert found["error_classes"][records[2]["error_class"]] == 1
    assert sum(found["error_classes"].values()) == 6 - right
    assert set(found["groups"]) == {"language", "kind", "hardness"}
    assert sum(part["num_questions"] for part in found["groups"]["hardness"].values()) == 6
    assert records[0]["predicted"] == golds[0].rstrip(";")
    assert records[0]["prompt"] == prompts[0].extras["instruction"]


def test_neighbouring_variants_are_compared_question_by_question(config, prompts):
    golds = [prompt.extras["output"] for prompt in prompts]
    base = answers(["x"] * 6, rewards=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    sft = answers(golds, rewards=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), kls=(0.5,) * 6)
    metrics, differences, _ = scored(config, prompts, base=base, sft=sft)
    accuracy, reward = differences
    assert (accuracy["of"], accuracy["minus"], accuracy["metric"]) == ("sft", "base", "execution_accuracy")
    assert (accuracy["difference"], accuracy["interval"]) == (1.0, (1.0, 1.0))
    # every question rose by 1, so the pairs leave no doubt although the rewards themselves spread widely
    assert (reward["difference"], reward["interval"]) == (pytest.approx(1.0), (1.0, 1.0))
    assert metrics["sft"]["kl"] == 0.5
    assert "kl" not in metrics["base"]
    assert metrics["base"]["reward"] == 2.5
    assert metrics["base"]["reward_interval"][0] < 2.5 < metrics["base"]["reward_interval"][1]


def test_confidence_sets_the_width(eval_config, sql_data, prompts):
    texts = [prompts[0].extras["output"], *["x"] * 5]
    narrow, wide = (
        scored(eval_config(dataset_dir=str(sql_data), confidence=level), prompts, m=answers(texts))[0]["m"]
        for level in (0.5, 0.99)
    )
    assert narrow["execution_accuracy_interval"][1] < wide["execution_accuracy_interval"][1]


@pytest.mark.parametrize(("column", "words"), [("db", "no column `db`"), ("output", "no reference SQL")])
def test_a_missing_column_is_named_with_its_row(config, prompts, column, words):
    extras = {key: value for key, value in prompts[1].extras.items() if key != column}
    broken = [prompts[0], dataclasses.replace(prompts[1], extras=extras)]
    with pytest.raises(UserError, match=f"row 2 .*{words}"):
        scored(config, broken, m=answers(["x", "x"]))
