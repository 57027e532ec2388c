"""Domain documents for pretraining: schemas, commented queries, and short lessons about SQL on those schemas."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from posttrain.data.text2sql.queries import Query
from posttrain.data.text2sql.tables import Column, Database

# What a query of each kind teaches, in English and Chinese.
_LESSONS: dict[str, tuple[str, str]] = {
    "projection": (
        "SELECT names the columns to return and FROM names the table.",
        "SELECT 指定要返回的列，FROM 指定表。",
    ),
    "filter": (
        "WHERE keeps only the rows for which its condition is true. Text is written in single quotes.",
        "WHERE 只保留满足条件的行，文本要写在单引号里。",
    ),
    "compare": ("Numbers are compared with >, <, >= and <=.", "数值用 >、<、>=、<= 比较。"),
    "between": ("BETWEEN keeps values from a lower to an upper bound, both included.", "BETWEEN 包含上下两个边界。"),
    "null": ("A missing value is NULL: test it with IS NULL, never with =.", "缺失值是 NULL，要用 IS NULL 判断。"),
    "like": ("LIKE matches a pattern in which % stands for any text.", "LIKE 按模式匹配，% 代表任意文本。"),
    "count": ("COUNT(*) counts rows.", "COUNT(*) 统计行数。"),
    "aggregate": (
        "AVG, SUM, MAX and MIN turn many values into one.",
        "AVG、SUM、MAX、MIN 把多个值合成一个值。",
    ),
    "distinct": ("DISTINCT removes repeated rows from the result.", "DISTINCT 去掉重复的结果。"),
    "order": (
        "ORDER BY sorts, DESC puts the largest first, and LIMIT keeps the first rows.",
        "ORDER BY 排序，DESC 从大到小，LIMIT 只取前几行。",
    ),
    "group": ("GROUP BY makes one row for each value of a column.", "GROUP BY 对列的每个值分组。"),
    "having": ("HAVING filters groups after GROUP BY.", "HAVING 在分组之后筛选。"),
    "date": (
        "Dates are written as 'YYYY-MM-DD' and compared like text; strftime('%Y', d) gives the year.",
        "日期写成 'YYYY-MM-DD'，strftime('%Y', d) 取出年份。",
    ),
    "join": (
        "JOIN puts rows of two tables side by side where their keys are equal.",
        "JOIN 按相同的键把两张表连接起来。",
    ),
}
_CAST = (
    "The column is stored as text, so it is converted before it is compared.",
    "该列以文本存储，比较之前要先转换。",
)
_TYPES = {
    "TEXT": ("text", "文本"),
    "INT": ("a whole number", "整数"),
    "REAL": ("a number", "小数"),
    "DATE": ("a date", "日期"),
    "VARCHAR": ("text", "文本"),
}


def write_document(database: Database, answered: Sequence[tuple[str, Query]], rng: Random) -> str:
    """One document of about a hundred words about ``database``.

    Args:
        database: whose schema is shown.
        answered: (question, query) pairs, two or three.
        rng: picks the form: commented script, description, or lesson.
    """
    form = rng.choice((_script, _script, _description, _lesson))
    return form(database, answered)


def _script(database: Database, answered: Sequence[tuple[str, Query]]) -> str:
    blocks = [f"-- {question}\n{query.sql()}" for question, query in answered]
    return "\n\n".join([database.schema, *blocks])


def _described(column: Column, language: str) -> str:
    return f"{column.name} ({_TYPES[column.type][language == 'zh']})"


def _description(database: Database, answered: Sequence[tuple[str, Query]]) -> str:
    table, language = database.table, database.language
    columns = [_described(column, language) for column in table.columns]
    question, query = answered[0]
    if language == "zh":
        return f"表 {table.name} 的列有：{'、'.join(columns)}。\n{table.schema}\n问题：{question}\n答案：{query.sql()}"
    listed = ", ".join(columns[:-1]) + " and " + columns[-1]
    text = f"The table {table.name} stores {table.noun}. Its columns are {listed}.\n{table.schema}\n"
    return f"{text}Question: {question}\nAnswer: {query.sql()}"


def _lesson(database: Database, answered: Sequence[tuple[str, Query]]) -> str:
    chinese = database.language == "zh"
    parts = [database.schema]
    for question, query in answered[:2]:
        lesson = _LESSONS[query.kind][chinese]
        if query.uses_cast:
            lesson += ("" if chinese else " ") + _CAST[chinese]
        parts.append(f"{lesson}\n{question}\n{query.sql()}")
    return "\n\n".join(parts)
