import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.rewards.sql.compare import extract_sql, is_ordered, normalized, same_result
from posttrain.rewards.sql.sandbox import Execution, execute


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


def ran(*rows):
    return Execution(tuple(rows))


def test_a_plain_query_gives_rows_and_columns(db):
    result = execute(db, "SELECT name, stock FROM item WHERE stock = 4 ORDER BY name LIMIT 2;")
    assert result.rows == (("Item 14", 4), ("Item 19", 4))
    assert result.columns == ("name", "stock")
    assert result.error is None


def test_ordinary_sql_works_under_the_limits(db):
    for sql, first in (
        ("WITH s AS (SELECT stock, COUNT(*) n FROM item GROUP BY stock) SELECT MAX(n) FROM s", (8,)),
        (
            "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c WHERE x < 9) SELECT SUM(x) FROM c",
            (45,),
        ),
        ("-- cheap ones\nSELECT COUNT(*) FROM item WHERE CAST(price AS REAL) < 10", (4,)),
        ("SELECT printf('%05.1f|%d|%s|%%', price, '12', name) FROM item WHERE name = 'Item 3'", ("021.0|12|Item 3|%",)),
        ("SELECT replace('abcabc', 'bc', 'x'), instr('hello', 'l'), trim('xxaxx', 'x')", ("axax", 3, "a")),
        ("SELECT strftime('%Y', '2020-03-01'), date('2020-03-01 10:00')", ("2020", "2020-03-01")),
        ("SELECT COUNT(*) FROM item a JOIN item b ON a.stock = b.stock WHERE a.name LIKE 'item 1_'", (80,)),
        ("SELECT COUNT(*) FROM item WHERE note IS NULL", (26,)),
    ):
        result = execute(db, sql)
        assert result.error is None, (sql, result.error)
        assert result.rows[0] == first, sql


@given(
    st.text("ab%_Z", max_size=6),
    st.text("abzA", max_size=8),
)
def test_like_means_what_it_means_in_sqlite(db, pattern, text):
    builtin = sqlite3.connect(":memory:").execute("SELECT ? LIKE ?", (text, pattern)).fetchone()
    assert execute(db, f"SELECT '{text}' LIKE '{pattern}'").rows[0] == builtin


def test_like_escape_and_null(db):
    result = execute(db, "SELECT '5%' LIKE '5!%' ESCAPE '!', '55' LIKE '5!%' ESCAPE '!', NULL LIKE 'a'")
    assert result.rows == ((1, 0, None),)


BIG = "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c)"
LAUGHS = "WITH a0 AS (SELECT 1 x)" + "".join(f", a{i} AS (SELECT 1 x FROM a{i - 1}, a{i - 1} b)" for i in range(1, 40))


@pytest.mark.parametrize(
    ("sql", "error_class"),
    [
        ("", "empty"),
        (" ; ", "empty"),
        ("-- nothing", "empty"),
        ("The answer is 4.", "not_a_query"),
        ("DROP TABLE item", "not_a_query"),
        ("SELECT * FROM pragma_table_info('item')", "forbidden"),
        ("SELECT load_extension('x')", "forbidden"),
        ("SELECT x FROM nowhere", "no_such_table"),
        ("SELECT colour FROM item", "no_such_column"),
        ("SELECT FROM item WHERE", "syntax"),
        ("SELECT 1; SELECT 2", "multiple_statements"),
        (f"SELECT SUM(x) FROM {BIG}", "timeout"),
        (f"SELECT x FROM {BIG} LIMIT 101", "too_many_rows"),
        ("SELECT hex(zeroblob(900000))", "too_big"),
        ("SELECT instr(hex(zeroblob(499000)), hex(zeroblob(240000)) || '1')", "timeout"),
        (LAUGHS + " SELECT * FROM a39", "too_big"),
    ],
)
def test_errors_have_classes(db, sql, error_class):
    assert execute(db, sql, time_limit_s=1.0 if "a39" not in sql else 20.0, row_limit=100).error_class == error_class


def test_the_row_limit_itself_is_allowed(db):
    assert len(execute(db, "SELECT name FROM item", row_limit=40).rows) == 40
    assert execute(db, "SELECT name FROM item", row_limit=39).error_class == "too_many_rows"


def test_a_missing_or_broken_database_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"gone\.sqlite"):
        execute(tmp_path / "gone.sqlite", "SELECT 1")
    assert not (tmp_path / "gone.sqlite").exists()
    (tmp_path / "text.sqlite").write_text("no database at all, only some text" * 40, encoding="utf-8")
    with pytest.raises(UserError, match="not a readable SQLite database"):
        execute(tmp_path / "text.sqlite", "SELECT 1")


def test_rows_compare_as_a_multiset_unless_ordered():
    gold = ran((1, "a"), (2, "b"), (2, "b"))
    assert same_result(gold, ran((2, "b"), (1, "a"), (2, "b")), ordered=False)
    assert not same_result(gold, ran((2, "b"), (1, "a"), (2, "b")), ordered=True)
    assert same_result(gold, gold, ordered=True)
    assert not same_result(gold, ran((1, "a"), (1, "a"), (2, "b")), ordered=False)
    assert not same_result(gold, ran((1, "a"), (2, "b")), ordered=False)


def test_column_order_and_number_count():
    assert not same_result(ran((1, "a")), ran(("a", 1)), ordered=False)
    assert not same_result(ran((1, "a")), ran((1,)), ordered=False)


@pytest.mark.parametrize(
    ("gold", "predicted", "same"),
    [
        (0.1 + 0.2, 0.3, True),
        (2, 2.0, True),
        (10**15, 10**15 + 1, False),
        (1.0, 1.001, False),
        (None, None, True),
        (None, 0, False),
        (None, "", False),
        ("5", 5, False),
        ("Paris", "paris", False),
        (b"a", "a", False),
        (1e308 * 10, 1e308 * 10, True),
    ],
)
def test_values_compare_by_the_stated_rule(gold, predicted, same):
    for ordered in (True, False):
        assert same_result(ran((gold,)), ran((predicted,)), ordered=ordered) is same
        assert same_result(ran((predicted,)), ran((gold,)), ordered=ordered) is same


def test_a_failed_execution_equals_nothing():
    failed = Execution(None, "boom")
    assert not same_result(ran((1,)), failed, ordered=False)
    assert not same_result(failed, failed, ordered=False)
    assert same_result(ran(), ran(), ordered=False)


CELL = st.one_of(
    st.none(), st.integers(-3, 3), st.floats(-5, 5), st.sampled_from(["a", "b", ""]), st.binary(max_size=1)
)


@given(st.lists(st.tuples(CELL, CELL), max_size=12), st.randoms(use_true_random=False))
def test_shuffled_and_slightly_rounded_rows_stay_the_same(rows, random):
    moved = [tuple(c * (1 + 1e-9) if isinstance(c, float) else c for c in row) for row in rows]
    random.shuffle(moved)
    assert same_result(ran(*rows), ran(*moved), ordered=False)
    assert not same_result(ran(*rows), ran(*moved, (9, 9)), ordered=False)


def test_large_results_compare_quickly():
    gold = ran(*((i, i / 7, None) for i in range(10_000)))
    predicted = ran(*((i, i / 7 * (1 + 1e-12), None) for i in reversed(range(10_000))))
    started = time.monotonic()
    assert same_result(gold, predicted, ordered=False)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3;", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT a FROM t WHERE b = 'ORDER BY'", False),
        ("SELECT a FROM t -- ORDER BY a", False),
        ('SELECT "ORDER BY" FROM t', False),
        ("SELECT SUM(a) OVER (ORDER BY b) FROM t", False),
        ("SELECT a FROM t ORDER /* x */ BY a", True),
    ],
)
def test_only_the_outermost_order_counts(sql, ordered):
    assert is_ordered(sql) is ordered


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("\n SELECT 1 ; ;\n", "SELECT 1"),
        ("Sure!\n```sql\nSELECT 1;\n```\nThis counts.", "SELECT 1"),
        ("```\nSELECT a\nFROM t\n```", "SELECT a\nFROM t"),
        ("```SQLite SELECT 1```", "SELECT 1"),
        ("```SELECT 1```", "SELECT 1"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("Here it is: SELECT 1", "Here it is: SELECT 1"),
        ("", ""),
    ],
)
def test_statements_are_found_in_answers(text, sql):
    assert extract_sql(text) == sql


def test_exact_match_ignores_space_case_and_comments_but_not_quotes():
    assert normalized("select  A from T;") == normalized("SELECT a\nFROM t -- all")
    assert normalized("SELECT 'A'") != normalized("SELECT 'a'")
