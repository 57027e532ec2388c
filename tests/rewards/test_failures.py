"""Why a statement failed, from the messages of two databases."""

import pytest

from posttrain.rewards.sql.failures import finer_class
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import Execution


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    import sqlite3

    path = tmp_path_factory.mktemp("failures") / "a.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (a INT, b INT); CREATE TABLE u (a INT);")
    connection.close()
    return path


@pytest.mark.parametrize(
    ("sql", "error_class"),
    [
        ("SELECT a FROM t, u", "ambiguous_column"),
        ("SELECT c FROM t", "no_such_column"),
        ("SELECT a FROM v", "no_such_table"),
        ("SELECT REVERSE(a) FROM t", "no_such_function"),
        ("SELECT a FROM t WHERE SUM(a) > 1", "misused_aggregate"),
        ("SELECT ABS(a, b) FROM t", "wrong_arguments"),
        ("SELECT a FROM t UNION SELECT a, b FROM t", "wrong_set_operation"),
        ("SELECT a FROM t WHERE a = (SELECT a, b FROM t)", "wrong_subquery"),
        ("SELECT a FROM t ORDER BY 3", "wrong_clause"),
        ("SELECT a FROM t HAVING a > 1", "wrong_clause"),
        ("SELECT a FRO t", "syntax"),
        ("INSERT INTO t VALUES (1)", "not_a_query"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", "too_many_rows"),
        ("", "empty"),
    ],
)
def test_sqlite_failures_have_classes(db, sql, error_class):
    (result,) = SqlRules(time_limit_s=20).executed([(db, sql)])
    assert finer_class(result) == error_class, result.error


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ('relation "items" does not exist', "no_such_table"),
        ('column "prize" does not exist', "no_such_column"),
        ("function nvl(integer, integer) does not exist", "no_such_function"),
        ('column reference "id" is ambiguous', "ambiguous_column"),
        ('column "t.a" must appear in the GROUP BY clause or be used in an aggregate function', "misused_aggregate"),
        ("aggregate functions are not allowed in WHERE", "misused_aggregate"),
        ("operator does not exist: text > integer", "type_mismatch"),
        ('invalid input syntax for type integer: "x"', "type_mismatch"),
        ("division by zero", "division_by_zero"),
        ("each UNION query must have the same number of columns", "wrong_set_operation"),
        ("more than one row returned by a subquery used as an expression", "wrong_subquery"),
        ('missing FROM-clause entry for table "e"', "no_such_table"),
        ('syntax error at or near "FRO"', "syntax"),
        ("the moon is full", "other"),
    ],
)
def test_postgresql_failures_have_the_same_classes(message, error_class):
    assert finer_class(Execution(None, message, error_class="other")) == error_class


def test_what_the_sandbox_knows_stays():
    assert finer_class(Execution(None, "ambiguous", error_class="timeout")) == "timeout"
