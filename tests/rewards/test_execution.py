"""The database as the reward."""

import sqlite3

import pytest
import torch

from posttrain.errors import RewardError, UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql import cache
from posttrain.rewards.sql.columns import database, reference_sql
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import execute_all
from posttrain.types import RolloutBatch


@pytest.fixture
def folder(tmp_path):
    connection = sqlite3.connect(tmp_path / "shop.sqlite")
    connection.execute("CREATE TABLE item (name TEXT, price INT)")
    connection.executemany("INSERT INTO item VALUES (?, ?)", [("pen", 2), ("cup", 5), ("mat", 9)])
    connection.commit()
    connection.close()
    return tmp_path


def batch(completions, row):
    size = len(completions)
    return RolloutBatch(
        input_ids=torch.zeros(size, 3, dtype=torch.long),
        attention_mask=torch.ones(size, 3, dtype=torch.bool),
        loss_mask=torch.ones(size, 3, dtype=torch.bool),
        logprobs=torch.zeros(size, 3),
        ended=torch.ones(size, dtype=torch.bool),
        completions=tuple(completions),
        extras=(row,) * size,
    )


def test_right_rows_are_worth_more_than_running_and_running_more_than_nothing(folder):
    row = {"db": "shop.sqlite", "gold": "SELECT name FROM item WHERE price > 4"}
    answers = [
        "SELECT name FROM item WHERE price >= 5;",
        "```sql\nSELECT name FROM item WHERE NOT price < 5\n```",
        "SELECT name FROM item",
        "SELECT title FROM item",
        "The items above four.",
        "DROP TABLE item",
    ]
    rewards = SqlExecutionReward(folder)(batch(answers, row))
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == pytest.approx([1.0, 1.0, 0.2, 0.0, 0.0, 0.0])
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        assert connection.execute("SELECT COUNT(*) FROM item").fetchone() == (3,)


def test_order_counts_where_the_reference_orders(folder):
    backwards = ["SELECT name FROM item ORDER BY price DESC"]
    ordered = {"db": "shop.sqlite", "output": "SELECT name FROM item ORDER BY price"}
    loose = {"db": "shop.sqlite", "output": "SELECT name FROM item"}
    assert SqlExecutionReward(folder)(batch(backwards, ordered)).tolist() == pytest.approx([0.2])
    assert SqlExecutionReward(folder)(batch(backwards, loose)).tolist() == [1.0]


def test_answers_and_references_in_another_dialect_are_translated(folder):
    row = {"db": "shop.sqlite", "gold": "SELECT name FROM item WHERE NVL(price, 0) > 4 AND ROWNUM <= 1"}
    answers = ["SELECT name FROM item WHERE DECODE(price, 5, 1, 0) = 1", "SELECT name FROM item WHERE ROWNUM <= 1", "x"]
    oracle = SqlExecutionReward(folder, SqlRules(dialect="oracle"))
    assert oracle(batch(answers, row)).tolist() == pytest.approx([1.0, 0.2, 0.0])
    with pytest.raises(UserError, match="reference SQL does not run"):
        SqlExecutionReward(folder)(batch(answers, row))


def test_databases_are_found_in_their_folder_or_beside(folder):
    assert database({"db": "shop.sqlite"}, folder, 1) == folder / "shop.sqlite"
    assert database({"db": "databases/shop.sqlite"}, folder, 1) == folder / "shop.sqlite"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"gold": "SELECT 1"}, "row 1 .*no column `db`"),
        ({"db": "shop.sqlite", "text": "x"}, "row 1 .*no reference SQL"),
        ({"db": "shop.sqlite", "gold": "SELECT nothing FROM item"}, "reference SQL does not run"),
        ({"db": "elsewhere.sqlite", "gold": "SELECT 1"}, "no such database file"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(folder, row, words):
    with pytest.raises(UserError, match=words):
        SqlExecutionReward(folder)(batch(["SELECT 1"], row))


def test_a_reference_that_fails_in_the_middle_of_a_run_is_worth_a_checkpoint(folder):
    reward = SqlExecutionReward(folder)
    good, broken = ({"db": "shop.sqlite", "gold": f"SELECT {name} FROM item"} for name in ("name", "colour"))
    assert reward(batch(["SELECT name FROM item"], good)).tolist() == [1.0]
    with pytest.raises(RewardError, match=r"reference SQL does not run on .*shop\.sqlite: no such column: colour"):
        reward(batch(["SELECT name FROM item"], broken))


def test_a_missing_table_is_named_beside_those_that_are_there(folder):
    row = {"db": "shop.sqlite", "gold": "SELECT 1 FROM items"}
    with pytest.raises(UserError, match=r"no such table: items \(there are: item\)"):
        SqlExecutionReward(folder)(batch(["SELECT 1"], row))


def test_equal_statements_run_once_and_again_when_the_file_changes(folder, monkeypatch):
    asked = []

    def counted(statements, **limits):
        asked.extend(sql for _, sql in statements)
        return execute_all(statements, **limits)

    monkeypatch.setattr(cache, "execute_all", counted)
    reward, row = SqlExecutionReward(folder), {"db": "shop.sqlite", "gold": "SELECT COUNT(*) FROM item"}
    answers = ["SELECT 3", "SELECT 3;", "SELECT 4", "SELECT 3"]
    for _ in range(2):
        assert reward(batch(answers, row)).tolist() == pytest.approx([1.0, 1.0, 0.2, 1.0])
    assert asked == ["SELECT COUNT(*) FROM item", "SELECT 3", "SELECT 4"]
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        connection.execute("INSERT INTO item VALUES ('jar', 1)")
    connection.close()
    assert reward(batch(answers, row)).tolist() == pytest.approx([0.2, 0.2, 1.0, 0.2])


def test_what_is_kept_is_bounded_and_what_was_late_is_tried_again(folder):
    path = folder / "shop.sqlite"
    known = cache.CachedExecutions(time_limit_s=0.2, row_limit=10, max_bytes=4_000)
    known([(path, f"SELECT {number}, 'abc'") for number in range(100)])
    assert 1 < len(known._known) < 20
    assert known._bytes <= 4_000
    late = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT MAX(x) FROM c"
    assert known([(path, late)])[0].error_class == "timeout"
    assert not any(late in key for key in known._known)


def test_the_reference_is_the_first_known_column():
    assert reference_sql({"reference": "c", "output": "b", "gold": "a"}, 1) == "a"
    assert reference_sql({"reference": "c", "output": None}, 1) == "c"
