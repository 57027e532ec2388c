"""How many small queries a second the sandbox runs, and answers a second the reward judges by them.

    python -m benchmarks.sql_throughput                                         on an SQLite file made for it
    python -m benchmarks.sql_throughput --url postgresql://reader@host/shop     and on a server

The server's database needs the same table: CREATE TABLE item AS SELECT 'Item ' || i AS name, i * 7 % 1000 AS price,
i % 50 AS stock FROM generate_series(0, 999) i. Figures: queries a second where every statement is another one, so that
nothing is cached; answers a second for such statements, references and comparison included; and answers a second where
eight at a time are the same, as in the groups of a policy that has become sure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql import workers
from posttrain.rewards.sql.columns import Databases
from posttrain.rewards.sql.places import Place
from posttrain.rewards.sql.sandbox import execute_all
from posttrain.types import RolloutBatch

RESULT = Path(__file__).parent / "results" / "sql_throughput.json"
QUERIES = (
    "SELECT name, price FROM item WHERE price > {n} ORDER BY name LIMIT 20",
    "SELECT stock, COUNT(*) FROM item WHERE price <> {n} GROUP BY stock",
    "SELECT COUNT(*) FROM item a JOIN item b ON a.stock = b.price WHERE a.price = {n}",
    "SELECT name FROM item WHERE price = (SELECT MAX(price) FROM item WHERE price < {n})",
)
ROWS = [(f"Item {i}", i * 7 % 1000, i % 50) for i in range(1000)]


def shop(folder: Path) -> Path:
    """An SQLite file with one table of 1000 rows."""
    path = folder / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE item (name TEXT, price INT, stock INT)")
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", ROWS)
    connection.close()
    return path


def queries(count: int, distinct: int, seed: int) -> list[str]:
    """Statements, ``distinct`` different ones among them."""
    drawn = random.Random(seed)
    different = [QUERIES[i % len(QUERIES)].format(n=i * 1000 + drawn.randrange(1000)) for i in range(distinct)]
    return [different[i % distinct] for i in range(count)]


def rollouts(texts: list[str], row: dict[str, Any]) -> RolloutBatch:
    """Answers of a batch; the tokens are of no account."""
    size = len(texts)
    return RolloutBatch(
        input_ids=torch.zeros(size, 2, dtype=torch.long),
        attention_mask=torch.ones(size, 2, dtype=torch.bool),
        loss_mask=torch.ones(size, 2, dtype=torch.bool),
        logprobs=torch.zeros(size, 2),
        ended=torch.ones(size, dtype=torch.bool),
        completions=tuple(texts),
        extras=(row,) * size,
    )


def per_second(count: int, works: Sequence[Callable[[], Any]]) -> dict[str, Any]:
    """Median and single figures, each work being ``count`` things."""
    rates = []
    for work in works:
        began = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - began))
    return {"per_second": round(statistics.median(rates), 1), "repeats": [round(rate, 1) for rate in rates]}


def measured(db: Place, databases: Databases, row: dict[str, Any], count: int, repeats: int) -> dict[str, Any]:
    """The three figures of a database."""
    warm = execute_all([(db, sql) for sql in queries(64, 64, seed=99)])
    if failed := [execution.error for execution in warm if execution.error]:
        raise SystemExit(f"the queries do not run on {db}: {failed[0]}")
    row = {**row, "gold": QUERIES[0].format(n=500)}
    distinct, repeated = ([queries(count, size, seed) for seed in range(repeats)] for size in (count, count // 8))

    def judged(answers: list[str]) -> None:
        SqlExecutionReward(databases)(rollouts(answers, row))

    return {
        "queries": per_second(count, [partial(execute_all, [(db, sql) for sql in texts]) for texts in distinct]),
        "distinct_answers": per_second(count, [partial(judged, texts) for texts in distinct]),
        "repeated_answers": per_second(count, [partial(judged, texts) for texts in repeated]),
    }


def main() -> None:
    """Measure and print, and keep the figures."""
    parser = argparse.ArgumentParser(description="Queries a second through the SQL sandbox.")
    parser.add_argument("--queries", type=int, default=2000, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--url", help="a PostgreSQL database to measure as well")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "workers": workers.pool().size,
        "queries_per_repeat": given.queries,
    }
    with tempfile.TemporaryDirectory() as name:
        path = shop(Path(name))
        row = {"db": path.name}
        found["sqlite_file"] = measured(path, Databases(path.parent), row, given.queries, given.repeats)
        if given.url:
            databases = Databases(path.parent, given.url)
            found["postgresql"] = measured(databases.of({}, 1), databases, {}, given.queries, given.repeats)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8", newline="\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
