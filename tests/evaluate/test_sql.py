import sqlite3

import pytest

from posttrain.errors import UserError
from posttrain.evaluate.sql import score_sql


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    # A space, a # and a ? in the path: each would end an URI that is not quoted.
    path = tmp_path_factory.mktemp("a b") / "shop #1 数据.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE item (name TEXT, price VARCHAR, stock INT, note TEXT)")
    rows = [(f"Item {i}", str(i * 7 % 120), i % 5, None if i % 3 else "x") for i in range(40)]
    connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", rows)
    connection.execute("CREATE INDEX item_stock ON item (stock)")
    connection.commit()
    connection.close()
    return path


def test_the_report_counts_by_hand(db):
    gold = "SELECT name FROM item WHERE CAST(price AS REAL) > 100;"
    predictions = [
        "```sql\nSELECT name FROM item WHERE CAST(price AS REAL) > 100;\n```",
        "SELECT name FROM item WHERE price + 0 > 100",
        "SELECT name FROM item WHERE price > 100",
        "SELECT title FROM item",
        "I do not know.",
    ]
    seen = []
    report = score_sql(
        predictions,
        [gold] * 5,
        [db] * 5,
        groups={"language": ["en", "en", "zh", "zh", "zh"]},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report.num_questions == 5
    assert report.execution_accuracy == pytest.approx(2 / 5)
    assert report.valid_rate == pytest.approx(3 / 5)
    assert report.exact_match == pytest.approx(1 / 5)
    assert report.error_classes == {"wrong_row_count": 1, "no_such_column": 1, "not_a_query": 1}
    assert report.groups["language"]["en"].execution_accuracy == 1.0
    assert report.groups["language"]["zh"].num_questions == 3
    assert report.interval[0] < 0.4 < report.interval[1]
    assert [outcome.correct for outcome in report.outcomes] == [True, True, False, False, False]
    assert "outcomes" not in report.to_dict()
    assert seen[-1] == (5, 5)


def test_an_order_in_the_gold_binds_the_prediction(db):
    gold = "SELECT name FROM item ORDER BY name DESC"
    report = score_sql(["SELECT name FROM item ORDER BY name ASC", gold], [gold] * 2, [db] * 2)
    assert [outcome.correct for outcome in report.outcomes] == [False, True]


def test_scoring_names_the_users_mistakes(db):
    with pytest.raises(UserError, match=r"none of the 1 gold statements runs.*Row 1"):
        score_sql(["SELECT 1"], ["SELECT nothing FROM item"], [db])
    with pytest.raises(UserError, match="one length"):
        score_sql(["SELECT 1"], [], [db])
    assert score_sql([], [], []).execution_accuracy == 0.0
