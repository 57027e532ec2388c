"""SQL of any model in a file, judged without loading one."""

import json
import sqlite3

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.evaluate.run import evaluate

GOLDS = [
    ("Names of dear items?", "SELECT name FROM item WHERE price > 4"),
    ("How many items?", "SELECT COUNT(*) FROM item"),
    ("Cheapest?", "SELECT name FROM item ORDER BY price LIMIT 1"),
]
GOOD = [
    "SELECT name FROM item WHERE price >= 5",
    "```sql\nselect count(*) from item\n```",
    "SELECT name FROM item LIMIT 1",
]
BAD = ["SELECT name FROM item", "SELECT COUNT(*) FROM items", "SELECT name FROM item LIMIT 1"]


@pytest.fixture
def folder(tmp_path):
    connection = sqlite3.connect(tmp_path / "shop.sqlite")
    connection.execute("CREATE TABLE item (name TEXT, price INT)")
    connection.executemany("INSERT INTO item VALUES (?, ?)", [("pen", 2), ("cup", 5), ("mat", 9)])
    connection.commit()
    connection.close()
    rows = [{"instruction": question, "output": gold, "db": "shop.sqlite"} for question, gold in GOLDS]
    (tmp_path / "dev.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def judged(folder, *files, **keys):
    values = {"task": "sql", "dataset_dir": str(folder), "eval_dataset": str(folder / "dev.json"), **keys}
    values = {key: value for key, value in values.items() if value is not None}
    said = []
    results = evaluate(load_config({**values, "predictions": list(files)}, command="eval"), said.append)
    return results, said


FORMS = {
    "good.jsonl": "\n".join(json.dumps({"predict": sql}) for sql in GOOD),
    "good.json": [{"completion": sql} for sql in GOOD],
    "strings.json": GOOD,
    "bird.json": {str(i): f"{sql}\t----- bird -----\tshop" for i, sql in enumerate(GOOD)},
    "spider.txt": "\n".join(sql.replace("```sql\n", "").replace("\n```", "") + "\tshop" for sql in GOOD) + "\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_read_in_the_usual_forms(folder, name):
    results, _ = judged(folder, str(write(folder / name, FORMS[name])))
    assert results["eval_execution_accuracy"] == 1.0
    assert list(results["variants"]) == [name.split(".")[0]]


def test_two_files_are_compared_question_by_question(folder):
    good, bad = write(folder / "good.json", GOOD), write(folder / "bad.json", BAD)
    results, _ = judged(folder, f"before={bad}", f"after={good}", output_dir=str(folder / "out"))
    assert results["variants"]["before"]["execution_accuracy"] == pytest.approx(1 / 3)
    assert results["variants"]["before"]["error_classes"] == {"wrong_row_count": 1, "no_such_table": 1}
    (difference,) = results["differences"]
    assert difference["difference"] == pytest.approx(2 / 3)
    assert (difference["both_right"], difference["only_of_right"], difference["only_minus_right"]) == (1, 2, 0)
    assert (difference["both_wrong"], difference["mcnemar_p"]) == (0, 0.5)
    # our own file judges itself again: both variants, no data file
    own = folder / "out" / "predictions.jsonl"
    again, _ = judged(folder, f"before={own}", f"after={own}", eval_dataset=None)
    assert again["variants"]["before"]["execution_accuracy"] == pytest.approx(1 / 3)
    assert again["variants"]["after"]["execution_accuracy"] == 1.0
    assert again["differences"] == results["differences"]


def test_gold_sql_that_does_not_run_is_said_and_counted(folder):
    rows = json.loads((folder / "dev.json").read_text(encoding="utf-8"))
    rows[1]["output"] = "SELECT COUNT(*) FROM things"
    write(folder / "dev.json", rows)
    results, said = judged(folder, str(write(folder / "good.json", GOOD)))
    assert results["eval_num_questions"] == 2
    assert results["eval_num_excluded"] == 1
    assert [item["row"] for item in results["excluded"]] == [2]
    assert any("row 2: no such table: things" in sentence for sentence in said)


def test_answers_in_another_dialect(folder):
    answers = [
        "SELECT name FROM item WHERE NVL(price, 0) > 4",
        "SELECT COUNT(*) FROM item",
        "SELECT name FROM item WHERE ROWNUM = 1",
    ]
    file = str(write(folder / "oracle.json", answers))
    assert judged(folder, file, sql_dialect="oracle")[0]["eval_execution_accuracy"] == 1.0
    assert judged(folder, file)[0]["eval_execution_accuracy"] == pytest.approx(1 / 3)


def test_answers_in_another_dialect_than_the_references(folder):
    rows = [{"instruction": "q", "output": 'SELECT name FROM item WHERE name = "pen"', "db": "shop.sqlite"}]
    write(folder / "dev.json", rows)
    file = str(write(folder / "oracle.json", ["SELECT name FROM item WHERE NVL(name, 'x') = 'pen'"]))
    keys = {"sql_dialect": "oracle", "sql_reference_dialect": "sqlite"}
    assert judged(folder, file, **keys)[0]["eval_execution_accuracy"] == 1.0
    with pytest.raises(UserError, match=r"none of the 1 gold statements runs"):
        judged(folder, file, sql_dialect="oracle")


def test_columns_in_any_order(folder):
    rows = [{"instruction": "q", "output": "SELECT name, price FROM item", "db": "shop.sqlite"}]
    write(folder / "dev.json", rows)
    file = str(write(folder / "turned.json", ["SELECT price, name FROM item"]))
    assert judged(folder, file)[0]["variants"]["turned"]["error_classes"] == {"wrong_column_order": 1}
    assert judged(folder, file, sql_column_order="any")[0]["eval_execution_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", "", r"empty\.jsonl holds no rows"),
        ("empty.txt", "\n\n", r"empty\.txt holds no rows"),
        ("empty.json", [], r"empty\.json holds no rows"),
        ("short.json", GOOD[:2], r"short\.json holds 2 rows, but the data 3"),
        ("odd.json", [{"sql_text": sql} for sql in GOOD], r"odd\.json, row 1: no column predict .*found: sql_text"),
        ("many.json", [{"predict": [sql]} for sql in GOOD], r"many\.json, row 1: column 'predict' must be text"),
        ("broken.json", "[1, ", r"broken\.json: not valid JSON"),
        ("gone.json", None, r"there is no file .*gone\.json"),
    ],
)
def test_bad_files_of_answers_are_named(folder, name, content, words):
    if content is not None:
        write(folder / name, content)
    with pytest.raises(UserError, match=words):
        judged(folder, str(folder / name))


def test_other_mistakes_are_named(folder):
    good = str(write(folder / "good.json", GOOD))
    with pytest.raises(UserError, match=r"row 1 of the data has no reference SQL"):
        judged(folder, good, eval_dataset=None)
    rows = [{"instruction": "q", "output": "SELECT 1", "db": "nowhere.sqlite"}]
    write(folder / "dev.json", rows)
    with pytest.raises(
        UserError, match=r"row 1 of the data names the database .*nowhere\.sqlite', but there is no .*database_dir"
    ):
        judged(folder, str(write(folder / "one.json", ["SELECT 1"])))


def test_a_missing_answer_is_an_empty_line(folder):
    file = write(folder / "gaps.sql", f"{GOOD[0]}\n\n{GOOD[2]}\tshop\n")
    results, _ = judged(folder, str(file))
    assert results["variants"]["gaps"]["error_classes"] == {"empty": 1}
    assert results["eval_execution_accuracy"] == pytest.approx(2 / 3)
