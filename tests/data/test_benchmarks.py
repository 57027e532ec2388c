"""Spider, CSpider, BIRD, DuSQL and WikiSQL as data sets of ours."""

import json
import sqlite3
from collections import Counter

import pytest

from posttrain.cli import main
from posttrain.data.text2sql.benchmarks import convert
from posttrain.data.text2sql.hardness import hardness
from posttrain.errors import UserError

SHOP = {
    "db_id": "shop",
    "table_names_original": ["item", "order", "sqlite_sequence"],
    "column_names_original": [[-1, "*"], [0, "id"], [0, "Name"], [1, "item id"], [1, "day"], [2, "name"]],
    "column_types": ["text", "number", "text", "number", "time", "text"],
    "primary_keys": [1],
    "foreign_keys": [[3, 1]],
}
QUESTIONS = [
    {"db_id": "shop", "question": "How many items?", "query": "SELECT COUNT(*) FROM item"},
    {"db_id": "shop", "question": "Who is called Pen?", "query": "SELECT id FROM item WHERE Name = 'Pen'"},
]
DUSQL_SCHEMA = {
    "db_id": "商店",
    "table_names": ["商品"],
    "column_names": [[-1, "*"], [0, "名称"], [0, "价格"]],
    "column_types": ["text", "text", "number"],
    "primary_keys": [],
    "foreign_keys": [],
}
DUSQL_CONTENT = {"db_id": "商店", "tables": {"商品": {"cell": [["笔", "2"], ["杯", "5.5"], ["垫", None]]}}}
WIKI_TABLE = {
    "id": "1-10-1",
    "header": ["Player", "No.", "Points", "Points"],
    "types": ["text", "text", "real", "real"],
    "rows": [["Ann", "7", "1,200", 3], ["Bob", "8", 900, 4]],
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if path.suffix == ".jsonl" and not isinstance(value, str):
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in value)
    path.write_text(lines, encoding="utf-8")


def shop_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY,\n  Name TEXT)")
        connection.executemany("INSERT INTO item VALUES (?, ?)", [(1, "Pen"), (2, "Cup")])
    connection.close()


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def query(path, sql):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


@pytest.fixture
def spider(tmp_path):
    folder = tmp_path / "spider"
    write(folder / "tables.json", [SHOP])
    write(folder / "dev.json", QUESTIONS)
    write(folder / "train_spider.json", QUESTIONS[:1])
    shop_file(folder / "database" / "shop" / "shop.sqlite")
    return folder


def test_spider_keeps_its_databases_and_shows_its_schema(spider, tmp_path):
    made = convert("spider", spider, tmp_path / "out")
    assert made.counts == {"dev.jsonl": 2, "train_spider.jsonl": 1}
    assert (made.num_databases, made.num_built, made.num_empty, made.left_out) == (1, 0, 0, {})
    first, second = rows_of(tmp_path / "out" / "dev.jsonl")
    assert first["instruction"] == (
        "<question>:How many items?\nCREATE TABLE item (id NUMERIC,\nName TEXT,\nPRIMARY KEY (id));\n"
        'CREATE TABLE "order" ("item id" NUMERIC,\nday DATE,\nFOREIGN KEY ("item id") REFERENCES item (id));'
    )
    assert (first["output"], first["language"], first["hardness"]) == ("SELECT COUNT(*) FROM item", "en", "easy")
    assert query(tmp_path / "out" / second["db"], second["output"]) == [(1,)]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["spider_dev"] == {"file_name": "dev.jsonl"}


def test_two_files_of_one_name_stay_apart(spider, tmp_path):
    write(spider / "a_test" / "dev.json", QUESTIONS[:1])
    assert convert("spider", spider, tmp_path / "out").counts == {
        "dev.jsonl": 2,
        "train_spider.jsonl": 1,
        "a_test_dev.jsonl": 1,
    }


def test_written_rows_are_what_an_evaluation_reads(spider, tmp_path):
    from posttrain.config import load_config
    from posttrain.evaluate.run import evaluate

    convert("spider", spider, tmp_path / "out")
    write(tmp_path / "said.json", ["SELECT 2", "select id from ITEM where name = 'Pen'"])
    keys = {"task": "sql", "dataset_dir": str(tmp_path / "out"), "eval_dataset": "spider_dev"}
    results = evaluate(load_config({**keys, "predictions": [str(tmp_path / "said.json")]}, command="eval"))
    assert results["eval_execution_accuracy"] == 1.0
    assert results["variants"]["said"]["groups"]["hardness"]["easy"]["num_questions"] == 2


def test_gold_sql_that_cannot_run_is_left_out_with_its_row(spider, tmp_path):
    write(spider / "dev.json", [*QUESTIONS, {"db_id": "shop", "question": "q", "query": "SELECT x FROM item"}])
    made = convert("spider", spider, tmp_path / "out")
    assert made.counts["dev.jsonl"] == 2
    ((where, why),) = made.left_out.items()
    assert where.endswith("dev.json, row 3")
    assert why == "no such column: x"
    assert rows_of(tmp_path / "out" / "left_out.jsonl")[0]["gold"] == "SELECT x FROM item"


def test_schemas_alone_make_empty_databases_or_invented_rows(spider, tmp_path):
    (spider / "database" / "shop" / "shop.sqlite").unlink()
    assert convert("spider", spider, tmp_path / "empty").num_empty == 1
    made = convert("spider", spider, tmp_path / "full", invent_rows=30)
    assert (made.num_built, made.num_empty) == (1, 0)
    db = tmp_path / "full" / "databases" / "shop.sqlite"
    assert query(db, "SELECT COUNT(DISTINCT id) FROM item") == [(30,)]
    assert query(db, "SELECT COUNT(*) FROM item WHERE Name = 'Pen'")[0][0] > 3
    assert query(db, 'SELECT COUNT(*) FROM "order" WHERE "item id" NOT IN (SELECT id FROM item)') == [(0,)]
    before = query(db, "SELECT * FROM item")
    convert("spider", spider, tmp_path / "full", invent_rows=30)
    assert query(db, "SELECT * FROM item") == before


def test_bird_brings_hints_levels_and_a_database_without_schema(tmp_path):
    folder = tmp_path / "bird"
    row = {"db_id": "shop", "question": "How many?", "evidence": "items are goods", "SQL": "SELECT COUNT(*) FROM item"}
    write(folder / "dev.json", [{**row, "difficulty": "simple"}])
    shop_file(folder / "dev_databases" / "shop" / "shop.sqlite")
    convert("bird", folder, tmp_path / "out")
    (made,) = rows_of(tmp_path / "out" / "dev.jsonl")
    assert made["hardness"] == "simple"
    assert made["instruction"] == (
        "<question>:How many?\n<evidence>:items are goods\nCREATE TABLE item (id INTEGER PRIMARY KEY, Name TEXT);"
    )


def test_dusql_builds_databases_from_its_content(tmp_path):
    folder = tmp_path / "dusql"
    write(folder / "db_schema.json", [DUSQL_SCHEMA])
    write(folder / "db_content.json", [DUSQL_CONTENT])
    gold = "select 名称 from 商品 where 价格 > 3"
    write(folder / "train.json", [{"db_id": "商店", "question": "哪些商品贵于3?", "query": gold, "sql": {}}])
    made = convert("dusql", folder, tmp_path / "out")
    assert (made.num_built, made.num_empty) == (1, 0)
    (row,) = rows_of(tmp_path / "out" / "train.jsonl")
    assert row["language"] == "zh"
    assert row["instruction"].endswith("CREATE TABLE 商品 (名称 TEXT,\n价格 NUMERIC);")
    assert query(tmp_path / "out" / row["db"], row["output"]) == [("杯",)]


@pytest.fixture
def wikisql(tmp_path):
    folder = tmp_path / "wikisql"
    write(folder / "dev.tables.jsonl", [WIKI_TABLE])
    question = {
        "table_id": "1-10-1",
        "question": "Points of ann?",
        "sql": {"sel": 2, "agg": 4, "conds": [[0, 0, "ann"], [2, 1, 1000]]},
    }
    write(folder / "dev.jsonl", [question])
    return folder


def test_wikisql_is_written_out(wikisql, tmp_path):
    convert("wikisql", wikisql, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "dev.jsonl")
    assert row["output"] == "SELECT SUM(Points) FROM table_1_10_1 WHERE Player = 'ann' AND Points > 1000"
    assert (
        'CREATE TABLE table_1_10_1 (Player TEXT,\n"No." TEXT,\nPoints NUMERIC,\n"Points 4" NUMERIC);'
        in row["instruction"]
    )
    assert query(tmp_path / "out" / row["db"], row["output"]) == [(1200,)]


def test_prompts_with_a_schema_get_a_database(tmp_path):
    from posttrain.config import load_config
    from posttrain.evaluate.run import evaluate

    gold = "SELECT * FROM 委托备案信息 WHERE TO_DATE(备案有效期, 'YYYY-MM-DD') > NOW();"
    prompt = "<question>:查看在今天之后的信息\nCREATE TABLE 委托备案信息 (序号 FLOAT,\n备案有效期 VARCHAR(255));"
    write(tmp_path / "in" / "train_clean.json", [{"instruction": prompt, "input": "", "output": gold}])
    convert("prompts", tmp_path / "in", tmp_path / "out", invent_rows=40, dialect="postgres")
    (row,) = rows_of(tmp_path / "out" / "train_clean.jsonl")
    assert (row["instruction"], row["output"], row["language"]) == (prompt, gold, "zh")
    assert query(tmp_path / "out" / row["db"], "SELECT COUNT(*) FROM 委托备案信息") == [(40,)]
    write(
        tmp_path / "said.json",
        [
            gold.replace("SELECT *", "SELECT 序号, 备案有效期"),
        ],
    )
    write(tmp_path / "wrong.json", ["SELECT * FROM 委托备案信息 WHERE 备案有效期 < NOW()"])
    keys = {"task": "sql", "dataset_dir": str(tmp_path / "out"), "eval_dataset": "prompts_train_clean"}
    files = [str(tmp_path / "said.json"), str(tmp_path / "wrong.json")]
    config = load_config({**keys, "sql_dialect": "postgres", "predictions": files}, command="eval")
    said = []
    results = evaluate(config, said.append)
    assert results["variants"]["said"]["execution_accuracy"] == 1.0
    assert results["variants"]["wrong"]["execution_accuracy"] == 0.0
    assert not any("find no row" in sentence for sentence in said)
    write(tmp_path / "in" / "more.json", [{"instruction": "no schema", "output": "SELECT 1"}])
    with pytest.raises(UserError, match=r"more\.json, row 1: no CREATE TABLE in the prompt"):
        convert("prompts", tmp_path / "in", tmp_path / "out")


def _set(path, value):
    return lambda folder: write(folder / path, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("dev.json", "[{]"), r"dev\.json, line 1: not valid JSON"),
        (_set("dev.json", {"a": 1}), r"dev\.json: must be a list of objects"),
        (_set("dev.json", ["x"]), r"dev\.json, row 1: must be an object"),
        (_set("dev.json", [{"db_id": "shop", "question": "q"}]), r"dev\.json, row 1: no text under `query` or `SQL`"),
        (_set("dev.json", [{**QUESTIONS[0], "db_id": "gone"}]), r"dev\.json, row 1: there is no database gone"),
        (_set("tables.json", [{**SHOP, "column_types": ["text"]}]), r"db_id shop.*`column_types` has 1 entries"),
        (_set("tables.json", [{**SHOP, "primary_keys": [77]}]), r"db_id shop.*a key names column 77"),
        (_set("tables.json", [{"db_id": "shop"}]), r"db_id shop.*no list `table_names_original`"),
        (_set("database/shop/shop.sqlite", "not a database, whatever its name says" * 9), "not a readable SQLite"),
        (lambda folder: [path.unlink() for path in folder.glob("*.json")], "no question files"),
    ],
)
def test_bad_files_are_one_message(spider, tmp_path, change, words):
    change(spider)
    with pytest.raises(UserError, match=words):
        convert("spider", spider, tmp_path / "out")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ({"sel": 9, "agg": 0, "conds": []}, "names a column, an aggregate or an operator that there is not"),
        ({"sel": 0}, "must be an object with `sel`"),
    ],
)
def test_bad_wikisql_is_one_message(wikisql, tmp_path, sql, words):
    write(wikisql / "dev.jsonl", [{"table_id": "1-10-1", "question": "q", "sql": sql}])
    with pytest.raises(UserError, match=f"dev.jsonl, row 1: .*{words}"):
        convert("wikisql", wikisql, tmp_path / "out")
    write(wikisql / "dev.jsonl", [{"table_id": "1-1-1", "question": "q", "sql": sql}])
    with pytest.raises(UserError, match=r"table 1-1-1 is not in dev\.tables\.jsonl"):
        convert("wikisql", wikisql, tmp_path / "out")


def test_the_command(spider, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["data", "text2sql", "--format", "spider", "--input", str(spider), "--output", out]
    assert main(arguments) == 0
    assert "dev.jsonl" in capsys.readouterr().out
    for wrong, words in (
        (["--format", "spidr"], "spider, cspider, bird, dusql, wikisql, prompts"),
        (["--num-sft", "9"], "--num-sft is about made-up questions"),
        (["--input", str(tmp_path / "gone")], "there is no such folder"),
        (["--invent-rows", "-1"], "--invent-rows -1"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert words in capsys.readouterr().err
    assert main(["data", "text2sql", "--format", "spider", "--output", out]) == 2
    assert "--input is missing" in capsys.readouterr().err


# As Spider's own evaluation counts, on the parsed queries that come with the data.
LIKE = 9


def spiders_level(sql):
    parts = [sql["from"]["conds"], sql["where"], sql["having"]]
    clauses = sum(bool(sql[name]) for name in ("where", "groupBy", "orderBy")) + (sql["limit"] is not None)
    clauses += max(0, len(sql["from"]["table_units"]) - 1)
    clauses += sum(token == "or" for part in parts for token in part[1::2])
    clauses += sum(unit[1] == LIKE for part in parts for unit in part[::2])
    nested = sum(isinstance(unit[i], dict) for part in parts for unit in part[::2] for i in (3, 4))
    nested += sum(sql[name] is not None for name in ("intersect", "except", "union"))
    ordered = [unit[i] for unit in sql["orderBy"][1] for i in (1, 2) if unit[i]] if sql["orderBy"] else []
    units = [*sql["select"][1], *sql["where"][::2], *sql["groupBy"], *ordered, *sql["having"]]
    others = (sum(unit[0] != 0 for unit in units) > 1) + (len(sql["select"][1]) > 1)
    others += (len(sql["where"]) > 1) + (len(sql["groupBy"]) > 1)
    if clauses <= 1 and not others and not nested:
        return "easy"
    if not nested and ((others <= 2 and clauses <= 1) or (clauses <= 2 and others < 2)):
        return "medium"
    if not nested and ((others > 2 and clauses <= 2) or (2 < clauses <= 3 and others <= 2)):
        return "hard"
    return "hard" if clauses <= 1 and not others and nested <= 1 else "extra"


@pytest.fixture(scope="module")
def spider_dev(request):
    folder = request.config.rootpath.parent / "shared" / "data" / "spider_dev"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/spider_dev")
    return folder


def test_every_level_of_spiders_development_set_is_its_own(spider_dev):
    entries = json.loads((spider_dev / "dev.json").read_text(encoding="utf-8"))
    levels = [hardness(entry["query"]) for entry in entries]
    assert Counter(levels) == {"easy": 248, "medium": 446, "hard": 174, "extra": 166}
    assert levels == [spiders_level(entry["sql"]) for entry in entries]


def test_spiders_development_set_as_it_is_published(spider_dev, tmp_path):
    made = convert("spider", spider_dev, tmp_path, invent_rows=20)
    assert made.counts == {"dev.jsonl": 1034}
    assert (made.num_databases, made.num_built, made.num_empty) == (20, 20, 0)
    rows = rows_of(tmp_path / "dev.jsonl")
    found = [bool(query(tmp_path / row["db"], row["output"])) for row in rows[::10]]
    assert sum(found) > 0.8 * len(found)


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT COUNT(*) FROM a", "easy"),
        ("SELECT x, y FROM a WHERE z = 1", "medium"),
        ("SELECT x FROM a JOIN b ON a.i = b.i WHERE z = 1", "medium"),
        ("SELECT x FROM a WHERE y IN (SELECT y FROM b)", "hard"),
        ("SELECT x, y FROM a WHERE z > 1 UNION SELECT x, y FROM b", "extra"),
        ("SELECT x FROM", "unknown"),
    ],
)
def test_levels_by_hand(sql, level):
    assert hardness(sql) == level
