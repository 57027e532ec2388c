"""SQL of Oracle, PostgreSQL and MySQL run on SQLite: what counts is the rows."""

import sqlite3
import time
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.rewards.sql import dialects
from posttrain.rewards.sql.dialects import exact_form, target_of, translated
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import MAX_SQL_LENGTH

TOMORROW = (date.today() + timedelta(days=2)).isoformat()
WEEK_AGO = (date.today() - timedelta(days=7)).isoformat()


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    path = tmp_path_factory.mktemp("dialects") / "staff.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("""
        CREATE TABLE emp (id INT, name TEXT, dept TEXT, pay REAL, bonus REAL, hired DATE, seen TEXT, "order" INT);
        CREATE TABLE dept (code TEXT, title TEXT);
        CREATE TABLE 委托备案信息 (序号 FLOAT, 委托企业名称 VARCHAR(255), 备案有效期 VARCHAR(255));
        INSERT INTO dept VALUES ('a', 'Arts'), ('b', 'Boats'), ('c', 'Cars');
    """)
    rows = [
        (1, "Ann", "a", 10.5, None, "2020-01-31", "2024-03-05 14:30:00", 4),
        (2, "bob", "b", 7, 2.0, "2021-06-15", "2024-02-29 00:00:00", 3),
        (3, "Cy", "a", 20, 1.0, "2019-12-01", "2023-12-31 23:59:59", 2),
        (4, "ann lee", None, 4, None, "2024-02-29", "2024-03-05 09:05:07", 1),
    ]
    connection.executemany("INSERT INTO emp VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    filings = [(1, "甲公司", TOMORROW), (2, "乙公司", "2020-05-01"), (3, "丙公司", None)]
    connection.executemany("INSERT INTO 委托备案信息 VALUES (?, ?, ?)", filings)
    connection.commit()
    connection.close()
    return path


def rows_of(db, sql, dialect):
    (result,) = SqlRules(dialect=dialect).executed([(db, sql)])
    assert result.error is None, f"{result.error}: {translated(sql, dialect, 'sqlite')}"
    return list(result.rows)


# dialect -> (expression, its value for Ann, who is row 1)
ANN = {
    "oracle": [
        ("NVL(bonus, 0)", 0),
        ("NVL2(bonus, 1, 2)", 2),
        ("DECODE(dept, 'a', 'first', 'b', 'second', 'none')", "first"),
        ("name || '-' || dept || bonus", "Ann-a"),
        ("CONCAT(name, dept)", "Anna"),
        ("TO_CHAR(hired, 'YYYY/MM')", "2020/01"),
        ("TO_CHAR(hired, 'DD-MON-YYYY')", "31-Jan-2020"),
        ("TO_CHAR(TO_DATE('05/03/2024', 'DD/MM/YYYY'), 'Day')", "Tuesday"),
        ("TO_CHAR(pay, 'FM999.00')", "10.50"),
        ("TO_CHAR(pay, '999.9')", "  10.5"),
        ('TO_CHAR(seen, \'yyyy"年"mm"月" hh:mi AM\')', "2024年03月 02:30 PM"),
        ("TO_DATE('2024/3/5', 'yyyy/mm/dd')", None),
        ("TO_DATE('2024-03-05', 'yyyy-mm-dd')", "2024-03-05"),
        ("TO_CHAR(id)", "1"),
        ("TO_NUMBER('12.5') + 1", 13.5),
        ("TO_DATE('20240305', 'YYYYMMDD')", "2024-03-05"),
        ("TO_DATE('05-MAR-2024', 'DD-MON-YYYY')", "2024-03-05"),
        ("TO_DATE('2024-03-05 14:30:00', 'YYYY-MM-DD HH24:MI:SS')", "2024-03-05 14:30:00"),
        ("ADD_MONTHS(hired, 1)", "2020-02-29"),
        ("ADD_MONTHS(TO_DATE('2021-02-28', 'YYYY-MM-DD'), 1)", "2021-03-31"),
        ("ADD_MONTHS(hired, -14)", "2018-11-30"),
        ("MONTHS_BETWEEN(DATE '2020-04-30', hired)", 3),
        ("MONTHS_BETWEEN(DATE '2020-02-15', DATE '2020-01-01')", 1 + 14 / 31),
        ("LAST_DAY(hired - 1)", "2020-01-31"),
        ("hired + 1", "2020-02-01"),
        ("id + 1", 2),
        ("hired - INTERVAL '1' MONTH", "2019-12-31"),
        ("DATE '2020-02-10' - hired", 10),
        ("TRUNC(seen)", "2024-03-05"),
        ("TRUNC(pay)", 10),
        ("TRUNC(seen, 'MM')", "2024-03-01"),
        ("TRUNC(seen, 'Q')", "2024-01-01"),
        ("TRUNC(pay / 4, 1)", 2.6),
        ("TRUNC(SYSDATE) - TRUNC(SYSDATE - 3)", 3),
        ("EXTRACT(YEAR FROM hired)", 2020),
        ("INSTR(name, 'n')", 2),
        ("SUBSTR(name, -2)", "nn"),
        ("LPAD(id, 3, '0')", "001"),
        ("GREATEST(id, 2)", 2),
        ("CAST(10.6 AS INTEGER)", 11),
        ("5 / 2", 2.5),
    ],
    "postgres": [
        ("hired + INTERVAL '1 day'", "2020-02-01"),
        ("hired + INTERVAL '1 month'", "2020-02-29"),
        ("hired - INTERVAL '1 year 2 days'", "2019-01-29"),
        ("seen::timestamp + INTERVAL '90 minutes'", "2024-03-05 16:00:00"),
        ("hired::date + 1", "2020-02-01"),
        ("'2020-03-01'::date - hired", 30),
        ("DATE_TRUNC('month', hired)", "2020-01-01"),
        ("DATE_TRUNC('week', seen)", "2024-03-04"),
        ("EXTRACT(DOW FROM hired)", 5),
        ("EXTRACT(QUARTER FROM seen)", 1),
        ("EXTRACT(WEEK FROM DATE '2024-12-30')", 1),
        ("DATE_PART('hour', seen)", 14),
        ("EXTRACT(YEAR FROM AGE('2024-01-30', hired))", 3),
        ("EXTRACT(DAY FROM seen::timestamp - '2024-03-01'::timestamp)", 4),
        ("TO_CHAR(seen, 'YYYY-MM-DD HH24:MI')", "2024-03-05 14:30"),
        ("TO_CHAR(hired, 'Day, DD Mon YYYY, Q')", "Friday, 31 Jan 2020, 1"),
        ("TO_CHAR(pay, 'FM90.00')", "10.50"),
        ("TO_DATE('20240305', 'YYYYMMDD')", "2024-03-05"),
        ("CONCAT(name, bonus, '!')", "Ann!"),
        ("CONCAT_WS('-', name, bonus, dept)", "Ann-a"),
        ("LEFT(name, 2) || RIGHT(name, 1)", "Ann"),
        ("SPLIT_PART(hired, '-', 2)", "01"),
        ("SPLIT_PART(hired, '-', 3)", "31"),
        ("POSITION('n' IN name)", 2),
        ("5 / 2", 2),
        ("5 / 2.0", 2.5),
        ("(10.567)::numeric(10, 2)", 10.57),
        ("7.6::int", 8),
        ("'abcdef'::varchar(3)", "abc"),
        ("FLOOR(-1.5)", -2),
        ("CEIL(1.2)", 2),
        ("REPEAT('ab', 2)", "abab"),
        ("GREATEST(bonus, pay)", 10.5),
        ("bonus IS DISTINCT FROM NULL", 0),
        ("MAKE_DATE(2024, 2, 9)", "2024-02-09"),
        ("name ILIKE 'a%'", 1),
        ("name LIKE 'a%'", 0),
        ("name ~ '^A'", 1),
        ("name ~* 'NN'", 1),
    ],
    "mysql": [
        ("IFNULL(bonus, 0)", 0),
        ("IF(pay > 5, 'much', 'little')", "much"),
        ("CONCAT(name, '-', dept)", "Ann-a"),
        ("CONCAT_WS(',', name, bonus, dept)", "Ann,a"),
        ("DATE_FORMAT(hired, '%Y-%m')", "2020-01"),
        ("DATE_FORMAT(seen, '%d/%m/%y %H:%i')", "05/03/24 14:30"),
        ("DATE_FORMAT(seen, '%M %e')", "March 5"),
        ("YEAR(hired) * 100 + MONTH(hired)", 202001),
        ("DAYOFWEEK(hired)", 6),
        ("WEEKDAY(hired)", 4),
        ("DAYNAME(hired)", "Friday"),
        ("QUARTER(seen)", 1),
        ("HOUR(seen)", 14),
        ("DAYOFYEAR('2024-03-01')", 61),
        ("DATEDIFF('2020-02-10', hired)", 10),
        ("DATEDIFF('2024-03-06 00:00:01', seen)", 1),
        ("DATE_ADD(hired, INTERVAL 1 MONTH)", "2020-02-29"),
        ("DATE_SUB(hired, INTERVAL 1 YEAR)", "2019-01-31"),
        ("hired + INTERVAL 1 WEEK", "2020-02-07"),
        ("ADDDATE(hired, 3)", "2020-02-03"),
        ("DATE_ADD(seen, INTERVAL id HOUR)", "2024-03-05 15:30:00"),
        ("LAST_DAY(hired)", "2020-01-31"),
        ("STR_TO_DATE('05/03/2024', '%d/%m/%Y')", "2024-03-05"),
        ("TIMESTAMPDIFF(YEAR, hired, '2024-01-30')", 3),
        ("TIMESTAMPDIFF(MONTH, hired, '2020-03-30')", 1),
        ("TIMESTAMPDIFF(DAY, '2020-02-01', hired)", -1),
        ("UNIX_TIMESTAMP('1970-01-02')", 86400),
        ("FROM_UNIXTIME(86400)", "1970-01-02 00:00:00"),
        ("5 / 2", 2.5),
        ("5 DIV 2", 2),
        ("TRUNCATE(10.57, 1)", 10.5),
        ("SUBSTRING_INDEX(hired, '-', 1)", "2020"),
        ("SUBSTRING_INDEX(hired, '-', -1)", "31"),
        ("FIELD(dept, 'b', 'a')", 2),
        ("FIND_IN_SET('b', 'a,b') > 0", 1),
        ("ELT(2, 'x', 'y')", "y"),
        ("LPAD(id, 4, '0')", "0001"),
        ("name = 'ANN'", 1),
        ("name IN ('ANN', 'x')", 1),
        ("name <> 'ann'", 0),
        ("bonus <=> NULL", 1),
        ("1 XOR 0", 1),
        ("MID(name, 2, 1)", "n"),
        ("CAST(pay AS SIGNED)", 10),
        ("name REGEXP 'NN$'", 1),
    ],
}


@pytest.mark.parametrize(("dialect", "expression", "value"), [(d, *case) for d, cases in ANN.items() for case in cases])
def test_expressions_have_the_value_of_their_own_dialect(db, dialect, expression, value):
    ((found,),) = rows_of(db, f"SELECT {expression} FROM emp WHERE id = 1", dialect)
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert type(found) is type(value) or isinstance(value, int | float)


# dialect -> (query, rows)
QUERIES = {
    "oracle": [
        ("SELECT id FROM emp WHERE ROWNUM <= 2", [(1,), (2,)]),
        ("SELECT id FROM emp WHERE pay > 5 AND ROWNUM < 3", [(1,), (2,)]),
        ("SELECT id FROM emp WHERE ROWNUM = 1", [(1,)]),
        ("SELECT * FROM (SELECT name FROM emp ORDER BY pay DESC) WHERE ROWNUM <= 1", [("Cy",)]),
        ("SELECT id FROM emp WHERE ROWNUM <= 2 ORDER BY pay", [(2,), (1,)]),
        ("SELECT COUNT(*) FROM emp e WHERE e.pay > 5 AND ROWNUM <= 2", [(2,)]),
        ("SELECT ROWNUM, name FROM emp WHERE id > 2", [(1, "Cy"), (2, "ann lee")]),
        (
            "SELECT n FROM (SELECT t.name AS n, ROWNUM rn FROM (SELECT name FROM emp ORDER BY id) t WHERE ROWNUM <= 3) "
            "WHERE rn > 1",
            [("bob",), ("Cy",)],
        ),
        ("SELECT 1 + 1 FROM DUAL", [(2,)]),
        ("SELECT id FROM emp ORDER BY pay DESC FETCH FIRST 2 ROWS ONLY", [(3,), (1,)]),
        ("SELECT id FROM emp ORDER BY pay OFFSET 1 ROWS FETCH NEXT 1 ROWS ONLY", [(2,)]),
        ("SELECT code FROM dept MINUS SELECT dept FROM emp", [("c",)]),
        (
            "SELECT d.title, COUNT(e.id) FROM dept d, emp e WHERE d.code = e.dept(+) GROUP BY d.title ORDER BY 1",
            [("Arts", 2), ("Boats", 1), ("Cars", 0)],
        ),
        ("SELECT id FROM emp ORDER BY bonus", [(3,), (2,), (1,), (4,)]),
        ("SELECT s.id FROM hr.emp s WHERE s.name LIKE 'A%'", [(1,)]),
        ("SELECT LISTAGG(name, ';') WITHIN GROUP (ORDER BY id) FROM emp WHERE id < 3", [("Ann;bob",)]),
        ("SELECT id FROM emp WHERE hired > TO_DATE('2021-01-01', 'YYYY-MM-DD')", [(2,), (4,)]),
        ("SELECT id FROM emp WHERE hired >= ADD_MONTHS(DATE '2021-07-15', -1) AND hired < SYSDATE", [(2,), (4,)]),
        ("SELECT MAX(hired) - MIN(hired) FROM emp WHERE id < 3", [(501,)]),
        ("SELECT MAX(pay) - MIN(pay) FROM emp", [(16,)]),
    ],
    "postgres": [
        (
            "SELECT 委托企业名称 FROM 委托备案信息 WHERE TO_DATE(备案有效期, 'YYYY-MM-DD') > NOW()",
            [("甲公司",)],
        ),
        ("SELECT id FROM public.emp WHERE hired::date BETWEEN '2020-01-01'::date AND '2021-12-31'::date", [(1,), (2,)]),
        ("SELECT id FROM emp ORDER BY bonus DESC, id", [(1,), (4,), (2,), (3,)]),
        (
            "SELECT DISTINCT ON (dept) dept, name FROM emp WHERE dept IS NOT NULL ORDER BY dept, pay DESC",
            [("a", "Cy"), ("b", "bob")],
        ),
        ("SELECT COUNT(*) FILTER (WHERE pay > 5) FROM emp", [(3,)]),
        ("SELECT id FROM emp WHERE dept = ANY (SELECT code FROM dept WHERE title LIKE 'B%')", [(2,)]),
        ("SELECT id FROM emp WHERE id = ANY (ARRAY[1, 4])", [(1,), (4,)]),
        ("SELECT id FROM emp WHERE pay >= ALL (SELECT pay FROM emp)", [(3,)]),
        ("SELECT id FROM emp WHERE dept <> ALL (SELECT code FROM dept WHERE code = 'a')", [(2,)]),
        ("SELECT STRING_AGG(name, '|') FROM emp WHERE id < 3", [("Ann|bob",)]),
        ('SELECT "order" FROM emp WHERE "name" NOT ILIKE \'a%\' LIMIT 1 OFFSET 1', [(2,)]),
        ("SELECT id FROM emp WHERE seen::timestamp > '2024-03-05 10:00'::timestamp", [(1,)]),
        ("SELECT ROUND(STDDEV(pay)::numeric, 3) FROM emp", [(6.945,)]),
        ("SELECT id FROM emp WHERE CURRENT_DATE - hired::date > 365 * 5 AND id < 3", [(1,), (2,)]),
        ("SELECT BOOL_OR(pay > 15) FROM emp", [(1,)]),
        ("WITH a AS (SELECT dept, SUM(pay) AS s FROM emp GROUP BY dept) SELECT dept FROM a WHERE s > 10", [("a",)]),
    ],
    "mysql": [
        ('SELECT `order` FROM `emp` WHERE `name` = "BOB"', [(3,)]),
        ("SELECT id FROM shop.emp LIMIT 1, 2", [(2,), (3,)]),
        (
            "SELECT id FROM emp WHERE hired < CURDATE() AND hired > DATE_SUB('2021-07-01', INTERVAL 1 MONTH)",
            [(2,), (4,)],
        ),
        ("SELECT dept, GROUP_CONCAT(name SEPARATOR '/') FROM emp WHERE dept = 'a' GROUP BY dept", [("a", "Ann/Cy")]),
        ("SELECT GROUP_CONCAT(DISTINCT dept) FROM emp WHERE dept = 'a'", [("a",)]),
        ("SELECT SUM(pay > 5) FROM emp", [(3,)]),
        ("SELECT id FROM emp WHERE NOW() > hired AND bonus IS NOT NULL && pay > 10", [(3,)]),
        ("SELECT ROUND(STD(pay), 3) FROM emp", [(6.014,)]),
        ("SELECT id FROM emp ORDER BY bonus", [(1,), (4,), (3,), (2,)]),
    ],
}


@pytest.mark.parametrize(("dialect", "sql", "rows"), [(d, *case) for d, cases in QUERIES.items() for case in cases])
def test_queries_give_the_rows_of_their_own_dialect(db, dialect, sql, rows):
    found = rows_of(db, sql, dialect)
    assert [tuple(pytest.approx(c) if isinstance(c, float) else c for c in row) for row in rows] == found


def test_a_quoted_name_that_is_no_column_is_an_error_and_not_a_text(db):
    for dialect, sql in (("postgres", 'SELECT "nothing" FROM emp'), ("mysql", "SELECT `nothing` FROM emp")):
        assert SqlRules(dialect=dialect).executed([(db, sql)])[0].error_class == "no_such_column"


@pytest.mark.parametrize(
    ("sql", "error_class"),
    [
        ("SELECT FROM WHERE", "syntax"),
        ("DROP TABLE emp", "not_a_query"),
        ("SELECT 1; DROP TABLE emp", "multiple_statements"),
        ("", "empty"),
        ("SELECT load_extension('x')", "forbidden"),
        ("I do not know", "not_a_query"),
        ("SELECT " + "(" * 3000, "syntax"),
        ("SELECT 1 FROM DUAL WHERE " + "hired + INTERVAL '1' MONTH " * 40, "syntax"),
    ],
)
@pytest.mark.parametrize("dialect", ["oracle", "postgres", "mysql"])
def test_what_cannot_be_parsed_goes_to_the_database_and_its_rules_hold(db, sql, error_class, dialect):
    (result,) = SqlRules(dialect=dialect).executed([(db, sql)])
    assert result.rows is None
    assert result.error_class == error_class or (error_class == "syntax" and result.error_class in ("too_big", "other"))


def test_a_translation_does_not_explode():
    chain = "SELECT hired" + " + INTERVAL '1' MONTH" * 30 + " FROM emp"
    assert len(translated(chain, "postgres", "sqlite")) <= 2 * MAX_SQL_LENGTH
    assert translated("SELECT " + "1+" * MAX_SQL_LENGTH, "oracle", "sqlite").startswith("SELECT 1+1+")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT hired" + " + 1" * 2400 + " FROM emp",
        "SELECT " + " || ".join(["name"] * 1500) + " FROM emp",
        "SELECT " + "TRUNC(" * 1200 + "pay" + ")" * 1200 + " FROM emp",
        "SELECT 1 FROM emp WHERE " + " AND ".join(["name = 'x'"] * 500),
    ],
)
@pytest.mark.parametrize("dialect", ["oracle", "postgres", "mysql"])
def test_long_statements_do_not_hold_up_a_run(sql, dialect):
    began = time.monotonic()
    translated(sql, dialect, "sqlite")
    assert time.monotonic() - began < 8


@given(st.text(max_size=60), st.sampled_from(["oracle", "postgres", "mysql"]))
def test_no_text_breaks_the_translator(text, dialect):
    assert isinstance(translated(text, dialect, "sqlite"), str)
    assert isinstance(translated(f"SELECT {text} FROM t", dialect, "sqlite"), str)


def test_the_database_says_what_is_translated_to():
    assert target_of(Path("a.sqlite")) == "sqlite"
    assert target_of("sqlite:///a.db") == "sqlite"
    assert target_of("postgresql+psycopg://u@h/db") == target_of("postgres://h/db") == "postgres"
    assert target_of("mysql://h/db") == "mysql"
    assert translated("SELECT NVL(a, 0) FROM t WHERE ROWNUM <= 3", "oracle", "postgres") == (
        "SELECT COALESCE(a, 0) FROM t LIMIT 3"
    )
    assert translated("SELECT `a` FROM t", "mysql", "postgres") == 'SELECT "a" FROM t'
    assert translated("SELECT 1", "mysql", "mysql") == "SELECT 1"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("select  Name from EMP -- x", 'SELECT name FROM "emp";', True),
        ("SELECT a FROM t WHERE b != 1 ORDER BY a ASC", "SELECT a FROM t WHERE b <> 1 ORDER BY a", True),
        ("SELECT a FROM t INNER JOIN u ON t.x = u.x", "SELECT a FROM t JOIN u ON t.x = u.x", True),
        ("SELECT a FROM t WHERE b = 'X'", "SELECT a FROM t WHERE b = 'x'", False),
        ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t ORDER BY a", False),
        ("SELECT a FROM", "select a from", True),
    ],
)
def test_exact_match_ignores_spelling_only(a, b, same):
    assert (exact_form(a.rstrip(";"), "sqlite") == exact_form(b.rstrip(";"), "sqlite")) is same


def test_without_sqlglot_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dialects, "has_sqlglot", lambda: False)
    with pytest.raises(UserError, match=r'`?sql_dialect: oracle.* needs .*pip install "posttrain\[sql\]"'):
        dialects.require_sqlglot("sql_dialect: oracle")
    assert exact_form("SELECT  A", "sqlite") == exact_form("select a", "sqlite")
