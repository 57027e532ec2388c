import dataclasses
from random import Random

import pytest

from posttrain.data.text2sql.mistakes import broken_answers
from posttrain.data.text2sql.queries import Condition, Join, Query, Term, literal
from posttrain.data.text2sql.questions import ask
from posttrain.data.text2sql.tables import Column, Database, Table

TITLE = Column("title", "label", "TEXT")
GENRE = Column("genre", "pick", "TEXT")
PRICE = Column("price", "real", "VARCHAR")
SOLD = Column("sold_on", "date", "VARCHAR")
BOOK = Table(
    "book",
    "books",
    (TITLE, GENRE, PRICE, SOLD),
    (
        ("A", "Crime", "9.5", "2020-01-02 10:00"),
        ("B", "Poetry", "12", "2020-05-02 11:00"),
        ("C", "Crime", "100", "2021-01-02 12:00"),
    ),
)
SHOP = Database("book", "en", "databases/book.sqlite", BOOK)


def query(kind="filter", **changes):
    return dataclasses.replace(Query(kind, "book", (Term(TITLE),)), **changes)


@pytest.mark.parametrize(
    ("made", "sql"),
    [
        (query(), "SELECT title FROM book;"),
        (query(select=(Term(None),)), "SELECT * FROM book;"),
        (query(select=(Term(GENRE),), distinct=True), "SELECT DISTINCT genre FROM book;"),
        (
            query(where=(Condition(GENRE, "=", ("O'Neil",)),)),
            "SELECT title FROM book WHERE genre = 'O''Neil';",
        ),
        (
            query(where=(Condition(PRICE, ">", (10,)), Condition(GENRE, "null"))),
            "SELECT title FROM book WHERE CAST(price AS REAL) > 10 AND genre IS NULL;",
        ),
        (
            query(where=(Condition(SOLD, "<", ("2020-02-01",)),)),
            "SELECT title FROM book WHERE date(sold_on) < '2020-02-01';",
        ),
        (
            query(where=(Condition(SOLD, "year", ("2020",)),)),
            "SELECT title FROM book WHERE strftime('%Y', sold_on) = '2020';",
        ),
        (
            query(where=(Condition(PRICE, "between", (1, 2)),), casts=False),
            "SELECT title FROM book WHERE price BETWEEN 1 AND 2;",
        ),
        (
            query(order=PRICE, descending=True, limit=2),
            "SELECT title FROM book ORDER BY CAST(price AS REAL) DESC LIMIT 2;",
        ),
        (
            query(select=(Term(GENRE), Term(None, "COUNT")), group=GENRE),
            "SELECT genre, COUNT(*) FROM book GROUP BY genre;",
        ),
        (
            query(select=(Term(GENRE),), group=GENRE, having=3),
            "SELECT genre FROM book GROUP BY genre HAVING COUNT(*) > 3;",
        ),
        (
            query(select=(Term(TITLE, table="book"),), join=Join("author", "author_id", "id")),
            "SELECT book.title FROM book JOIN author ON book.author_id = author.id;",
        ),
    ],
)
def test_queries_are_written_as_sql(made, sql):
    assert made.sql() == sql


def test_literals():
    assert (literal("a'b"), literal(3), literal(2.5)) == ("'a''b'", "3", "2.5")


def test_hardness_follows_the_clauses():
    assert query().hardness == "easy"
    assert query(where=(Condition(GENRE, "=", ("x",)),)).hardness == "medium"
    assert query(where=(Condition(PRICE, ">", (1,)),)).hardness == "hard"
    assert query(group=GENRE).hardness == "hard"


@pytest.mark.parametrize("seed", range(6))
def test_questions_name_what_the_query_uses(seed):
    asked = ask(query(where=(Condition(PRICE, ">", (10,)),)), SHOP, Random(seed))
    assert "title" in asked
    assert "books whose price is" in asked
    assert "10" in asked
    dated = ask(query(where=(Condition(SOLD, ">", ("2020-02-01",)),)), SHOP, Random(seed))
    assert "sold on is after 2020-02-01" in dated


def test_chinese_questions_read_like_the_ones_people_write():
    title, price = Column("书名", "label", "TEXT"), Column("价格", "real", "REAL")
    shop = Database("book", "zh", "x", Table("图书", "图书", (title, price), (("山", 1.0),)))
    made = Query("compare", "图书", (Term(title),), (Condition(price, ">=", (20,)),))
    assert {ask(made, shop, Random(seed)) for seed in range(20)} == {
        "查看价格不低于20的图书的书名",
        "列出价格不低于20的图书的书名",
        "查询价格不低于20的图书的书名",
        "价格不低于20的图书的书名有哪些?",
    }


def test_paraphrases_differ_by_seed_and_repeat_with_it():
    made = Query("count", "book", (Term(None, "COUNT"),))
    assert len({ask(made, SHOP, Random(seed)) for seed in range(20)}) == 3
    assert ask(made, SHOP, Random(5)) == ask(made, SHOP, Random(5))


def test_mistakes_are_the_ones_their_names_say():
    made = query(where=(Condition(PRICE, ">", (10,)),))
    found = {}
    for seed in range(30):
        for mistake, text in broken_answers(made, SHOP, Random(seed)):
            found.setdefault(mistake, set()).add(text)
    assert found["missing_cast"] == {"SELECT title FROM book WHERE price > 10;"}
    assert found["missing_filter"] == {"SELECT title FROM book;"}
    compared = {f"SELECT title FROM book WHERE CAST(price AS REAL) {op} 10;" for op in ("<", ">=")}
    assert found["wrong_operator"] == compared
    assert "SELECT genre FROM book WHERE CAST(price AS REAL) > 10;" in found["wrong_column"]
    assert "SELECT title FROM books WHERE CAST(price AS REAL) > 10;" in found["wrong_table"]
    assert "SELECT title_name FROM book WHERE CAST(price AS REAL) > 10;" in found["hallucinated_column"]
    assert all("SELECT" not in text for text in found["prose"])
    assert "wrong_aggregate" not in found
    assert "missing_distinct" not in found
    assert all(made.sql() != text for texts in found.values() for text in texts)
