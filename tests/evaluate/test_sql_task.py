import dataclasses

import pytest

from posttrain.data.formats import Message
from posttrain.data.sources import read_rows
from posttrain.errors import UserError
from posttrain.evaluate import sql_task
from posttrain.evaluate.bench import Bench
from posttrain.evaluate.responses import Responses
from posttrain.evaluate.sql_task import SqlQuestions

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


def asked(config, prompts):
    return SqlQuestions.prepared(config, [prompt.extras for prompt in prompts], lambda *call: None)


@pytest.fixture
def judge(eval_config, sql_data, tmp_path, monkeypatch):
    """Judge the answers of variants (name -> texts, what else is known of each) to some prompts."""

    def run(prompts, said, known=None, **keys):
        config = eval_config(task="sql", dataset_dir=str(sql_data), **keys)

        def responses(bench, check):
            check([prompt.extras for prompt in prompts])
            size = len(prompts)
            return Responses(
                ids=tuple(map(str, range(size))),
                asked=tuple(prompt.messages for prompt in prompts),
                references=("",) * size,
                extras=tuple(prompt.extras for prompt in prompts),
                texts={name: tuple(texts) for name, texts in said.items()},
                known={name: (known or {}).get(name, ({},) * size) for name in said},
            )

        monkeypatch.setattr(sql_task, "read_responses", responses)
        notes = []
        found = sql_task.sql(Bench(config, notes.append, lambda *call: None))
        return found, notes

    return run


def test_right_wrong_and_broken_sql_are_told_apart(judge, prompts):
    golds = [prompt.extras["output"] for prompt in prompts]
    texts = [f"```sql\n{golds[0]}\n```", golds[1].lower(), "SELECT nothing FROM nowhere", *[NOTHING] * 3]
    result, _ = judge(prompts, {"sft": texts})
    found, records = result.variants["sft"], result.records
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


def test_neighbouring_variants_are_compared_question_by_question(judge, prompts):
    golds = [prompt.extras["output"] for prompt in prompts]
    known = {
        "base": tuple({"reward": float(i)} for i in range(6)),
        "sft": tuple({"reward": float(i + 1), "kl": 0.5} for i in range(6)),
    }
    result, _ = judge(prompts, {"base": ["x"] * 6, "sft": golds}, known)
    accuracy, reward = result.differences
    assert (accuracy["of"], accuracy["minus"], accuracy["metric"]) == ("sft", "base", "execution_accuracy")
    assert (accuracy["difference"], accuracy["interval"]) == (1.0, [1.0, 1.0])
    assert (accuracy["only_of_right"], accuracy["only_minus_right"], accuracy["both_wrong"]) == (6, 0, 0)
    assert accuracy["mcnemar_p"] == 2 / 2**6
    # every question rose by 1, so the pairs leave no doubt although the rewards themselves spread widely
    assert (reward["difference"], reward["interval"]) == (pytest.approx(1.0), pytest.approx([1.0, 1.0]))
    assert "mcnemar_p" not in reward
    assert result.variants["sft"]["kl"] == 0.5
    assert "kl" not in result.variants["base"]
    assert result.variants["base"]["reward"] == 2.5
    low, high = result.variants["base"]["reward_interval"]
    assert low < 2.5 < high


def test_confidence_sets_the_width(judge, prompts):
    texts = [prompts[0].extras["output"], *["x"] * 5]
    narrow, wide = (judge(prompts, {"m": texts}, confidence=level)[0].variants["m"] for level in (0.5, 0.99))
    assert narrow["execution_accuracy_interval"][1] < wide["execution_accuracy_interval"][1]


@pytest.mark.parametrize(("column", "words"), [("db", "no column `db`"), ("output", "no reference SQL")])
def test_a_missing_column_is_named_with_its_row(config, prompts, column, words):
    extras = {key: value for key, value in prompts[1].extras.items() if key != column}
    broken = [prompts[0], dataclasses.replace(prompts[1], extras=extras)]
    with pytest.raises(UserError, match=f"row 2 .*{words}"):
        asked(config, broken)


def test_gold_sql_that_does_not_run_is_left_out_and_counted(judge, prompts):
    extras = {**prompts[1].extras, "output": "SELECT a FROM nowhere"}
    golds = [prompt.extras["output"] for prompt in prompts]
    spoilt = [prompts[0], dataclasses.replace(prompts[1], extras=extras), *prompts[2:]]
    result, notes = judge(spoilt, {"m": golds})
    found = result.variants["m"]
    assert (found["num_questions"], found["num_excluded"]) == (5, 1)
    assert found["execution_accuracy"] == found["exact_match"] == 1.0
    assert sum(part["num_questions"] for part in found["groups"]["hardness"].values()) == 5
    (excluded,) = result.more["excluded"]
    assert (excluded["row"], excluded["error"]) == (2, "no such table: nowhere")
    assert result.records[1]["error_class"] == "gold_fails"
    assert "1 of 6 gold statements do not run" in notes[0]
    assert "row 2: no such table: nowhere" in notes[0]


def test_only_broken_golds_stop_the_evaluation_with_a_likely_fix(config, prompts):
    broken = [
        dataclasses.replace(prompt, extras={**prompt.extras, "output": "SELECT a FROM nowhere"}) for prompt in prompts
    ]
    with pytest.raises(UserError, match=r"none of the 6 gold statements runs.*Row 1.*no such table.*right database"):
        asked(config, broken)


def test_rows_without_levels_get_spiders(config, prompts):
    bare = [
        dataclasses.replace(p, extras={k: v for k, v in p.extras.items() if k in ("db", "output")}) for p in prompts
    ]
    assert set(asked(config, bare).groups) == {"hardness"}
    assert set(asked(config, bare).groups["hardness"]) <= {"easy", "medium", "hard", "extra"}


def test_golds_that_find_nothing_are_said(config, prompts):
    extras = {**prompts[0].extras, "output": NOTHING}
    (note,) = asked(config, [dataclasses.replace(prompts[0], extras=extras), *prompts[1:]]).notes()
    assert "1 of 6 gold statements find no row" in note
