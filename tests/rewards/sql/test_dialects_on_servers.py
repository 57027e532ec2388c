"""SQL of Oracle, MySQL and SQLite run on PostgreSQL: the same rows as on SQLite."""

import pytest

from posttrain.rewards.sql.rules import SqlRules

QUERIES = {
    "oracle": [
        "SELECT COUNT(*) FROM item WHERE NVL(note, 'none') = 'none'",
        "SELECT DECODE(stock, 0, 'zero', 'some') FROM item WHERE ROWNUM <= 40 ORDER BY name",
        "SELECT name FROM (SELECT name FROM item ORDER BY name) WHERE ROWNUM <= 2",
        "SELECT name FROM item WHERE stock = 1 ORDER BY name FETCH FIRST 2 ROWS ONLY",
        "SELECT COUNT(*) FROM (SELECT stock FROM item MINUS SELECT stock FROM item WHERE stock > 2)",
        "SELECT ADD_MONTHS(DATE '2024-01-30', 1) FROM DUAL",
        "SELECT TO_CHAR(TRUNC(TO_DATE('2024-05-17', 'YYYY-MM-DD'), 'MM'), 'YYYY-MM-DD') FROM DUAL",
        "SELECT COUNT(*) FROM item WHERE TO_DATE('2024-01-01', 'YYYY-MM-DD') < SYSDATE - 7",
        "SELECT TO_NUMBER(price) / 2 FROM item WHERE name LIKE 'Item 1%'",
        "SELECT COUNT(*) FROM item WHERE name LIKE 'item 1%'",
    ],
    "mysql": [
        "SELECT `name` FROM item ORDER BY `name` LIMIT 1, 2",
        "SELECT IF(stock > 1, 'a', 'b'), IFNULL(note, '-'), CONCAT(name, '-', stock) FROM item",
        "SELECT YEAR('2024-05-01'), DATE_FORMAT('2024-05-01', '%Y-%m')",
        "SELECT DATE_ADD('2024-01-31', INTERVAL 1 MONTH)",
        "SELECT DATEDIFF('2024-05-03', '2024-05-01')",
        "SELECT stock / 2, stock DIV 2 FROM item",
        'SELECT stock FROM item WHERE name = "ITEM 1"',
        "SELECT COUNT(*) FROM item WHERE name LIKE 'item%'",
        "SELECT SUM(stock > 1) FROM item",
    ],
    "sqlite": [
        "SELECT name FROM item WHERE CAST(price AS REAL) > 100",
        "SELECT IFNULL(note, 'x'), name || 'a' FROM item",
        "SELECT IIF(stock > 1, 1, 0), substr(name, 1, 2) FROM item",
        "SELECT name FROM item WHERE name LIKE 'item 1%'",
        "SELECT stock, COUNT(*) FROM item GROUP BY stock ORDER BY COUNT(*) DESC, stock",
        "SELECT strftime('%Y', '2024-05-01')",
    ],
}


@pytest.mark.parametrize(("dialect", "sql"), [(d, sql) for d, queries in QUERIES.items() for sql in queries])
def test_a_server_gives_the_rows_of_a_file(shop, shop_on_server, dialect, sql):
    rules = SqlRules(dialect=dialect)
    here, there = rules.executed([(shop, sql), (shop_on_server, sql)])
    assert here.error is None
    assert there.error is None, rules.statement(shop_on_server, sql)[1]
    assert rules.is_right(sql, here, there), (here.rows, there.rows)
