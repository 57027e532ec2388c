"""Says a query in plain English or Chinese, with several paraphrases of each kind."""

from __future__ import annotations

from random import Random

from posttrain.data.text2sql.queries import Condition, Query, Term
from posttrain.data.text2sql.tables import Database

_EN_OPS = {
    ">": ("is over", "is above", "is more than"),
    "<": ("is under", "is below", "is less than"),
    ">=": ("is at least",),
    "<=": ("is at most",),
    "=": ("is",),
}
_EN_DATE_OPS = {">": "is after", "<": "is before", "=": "is on", ">=": "is at least", "<=": "is at most"}
_EN_FUNCTIONS = {
    "AVG": ("average",),
    "SUM": ("total",),
    "MAX": ("highest", "maximum"),
    "MIN": ("lowest", "minimum"),
}
_ZH_OPS = {
    ">": ("大于", "超过", "高于"),
    "<": ("小于", "低于"),
    ">=": ("不低于",),
    "<=": ("不超过",),
    "=": ("为", "是"),
}
_ZH_DATE_OPS = {">": "在{}之后", "<": "在{}之前", "=": "为{}", "year": "在{}年"}
_ZH_FUNCTIONS = {"AVG": ("平均",), "SUM": ("总",), "MAX": ("最高", "最大"), "MIN": ("最低", "最小")}


def ask(query: Query, database: Database, rng: Random) -> str:
    """The question that ``query`` answers, in the language of ``database``.

    Args:
        query: over that database.
        database: names the rows (the table's noun) and the language.
        rng: picks the paraphrase.
    """
    noun = database.table.noun
    return (_english if database.language == "en" else _chinese)(query, noun, rng)


def _english(query: Query, noun: str, rng: Random) -> str:
    where = _english_where(query, rng)
    first = query.select[0]
    if query.having is not None:
        group = first.column.phrase if first.column else ""
        return rng.choice(
            (
                f"Which {group} has more than {query.having} {noun}?",
                f"List each {group} with more than {query.having} {noun}.",
            )
        )
    if query.group:
        return _english_group(query, noun, rng)
    if first.function == "COUNT":
        return rng.choice(
            (
                f"How many {noun} are there{where}?",
                f"Count the {noun}{where}.",
                f"What is the number of {noun}{where}?",
            )
        )
    if first.function and first.column:
        word = rng.choice(_EN_FUNCTIONS[first.function])
        name = first.column.phrase
        start = rng.choice((f"What is the {word} {name} of {noun}", f"Find the {word} {name} of {noun}"))
        return f"{start}{where}{'?' if start.startswith('What') else '.'}"
    if query.distinct and first.column:
        return rng.choice(("List the different", "Show the distinct")) + f" {first.column.phrase} of {noun}{where}."
    selected = _english_select(query)
    if query.order:
        return _english_order(query, selected, noun, rng)
    verb = rng.choice(("Show", "List", "Find"))
    if selected == "everything":
        return f"{verb} everything about {noun if where else 'all ' + noun}{where}."
    if not where:
        return f"{verb} {selected} of all {noun}."
    if len(query.select) == 1 and rng.random() < 0.3:
        return f"What is {selected} of {noun}{where}?"
    return f"{verb} {selected} of {noun}{where}."


def _english_select(query: Query) -> str:
    if query.select[0].column is None:
        return "everything"
    names = [_qualified(term, query, " ") for term in query.select]
    return "the " + (names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1])


def _qualified(term: Term | Condition, query: Query, separator: str) -> str:
    """A column's phrase, with the parent's name before it when it is the parent's."""
    name = term.column.phrase if term.column else ""
    return f"{term.table}{separator}{name}" if query.join and term.table == query.join.parent else name


def _english_group(query: Query, noun: str, rng: Random) -> str:
    group = query.group.phrase if query.group else ""
    term = query.select[1]
    if term.function == "COUNT" or term.column is None or term.function is None:
        return rng.choice((f"How many {noun} are there for each {group}?", f"Count the {noun} of each {group}."))
    what = f"{rng.choice(_EN_FUNCTIONS[term.function])} {term.column.phrase}"
    return rng.choice(
        (f"What is the {what} of {noun} for each {group}?", f"Show the {what} of {noun} for each {group}.")
    )


def _english_order(query: Query, selected: str, noun: str, rng: Random) -> str:
    column, verb = query.order, rng.choice(("Show", "List", "Find"))
    if column is None:
        return ""
    dated = column.kind == "date"
    if query.limit is None:
        direction = {
            (True, True): "latest to earliest",
            (True, False): "earliest to latest",
            (False, True): "high to low",
            (False, False): "low to high",
        }[dated, query.descending]
        return f"{verb} {selected} of all {noun} sorted by {column.phrase} from {direction}."
    high, low = ("latest", "earliest") if dated else ("highest", "lowest")
    extreme = high if query.descending else low
    if query.limit == 1:
        return f"{verb} {selected} with the {extreme} {column.phrase} among {noun}."
    return f"{verb} {selected} of the {query.limit} {noun} with the {extreme} {column.phrase}."


def _english_where(query: Query, rng: Random) -> str:
    if not query.where:
        return ""
    said = [f"{_qualified(c, query, ' ')} {_english_condition(c, rng)}" for c in query.where]
    return " whose " + " and ".join(said)


def _english_condition(condition: Condition, rng: Random) -> str:
    op, values = condition.op, condition.values
    if op == "null":
        return rng.choice(("is missing", "is empty"))
    if op == "not null":
        return rng.choice(("is known", "is not empty"))
    if op == "like":
        text = str(values[0])
        return f"contains {text.strip('%')}" if text.startswith("%") else f"starts with {text.strip('%')}"
    if op == "between":
        return f"is between {values[0]} and {values[1]}"
    if op == "year":
        return f"is in {values[0]}"
    if condition.column.kind in ("date", "year"):
        return f"{_EN_DATE_OPS[op]} {values[0]}"
    return f"{rng.choice(_EN_OPS[op])} {values[0]}"


def _chinese(query: Query, noun: str, rng: Random) -> str:
    where = _chinese_where(query, rng)
    first = query.select[0]
    verb = rng.choice(("查看", "列出", "查询"))
    if query.having is not None and first.column:
        return rng.choice(
            (
                f"哪些{first.column.phrase}的{noun}数量超过{query.having}?",
                f"列出{noun}数量超过{query.having}的{first.column.phrase}",
            )
        )
    if query.group:
        return _chinese_group(query, noun, rng)
    if first.function == "COUNT":
        return rng.choice((f"{where}{noun}有多少个?", f"统计{where}{noun}数量"))
    if first.function and first.column:
        word = rng.choice(_ZH_FUNCTIONS[first.function])
        return f"{where}{noun}的{word}{first.column.phrase}是多少?"
    if query.distinct and first.column:
        return rng.choice(
            (f"{where}{noun}有哪些不同的{first.column.phrase}?", f"列出{where}{noun}的不同{first.column.phrase}")
        )
    if first.column is None:
        return f"{verb}{where}{noun}信息" if where else f"{verb}所有{noun}信息"
    names = [_qualified(term, query, "") for term in query.select]
    selected = "、".join(names[:-1]) + ("和" if len(names) > 1 else "") + names[-1]
    if query.order:
        return _chinese_order(query, selected, noun, verb)
    if not where:
        return f"{verb}所有{noun}的{selected}"
    return rng.choice((f"{verb}{where}{noun}的{selected}", f"{where}{noun}的{selected}有哪些?"))


def _chinese_group(query: Query, noun: str, rng: Random) -> str:
    group = query.group.phrase if query.group else ""
    term = query.select[1]
    if term.function == "COUNT" or term.column is None or term.function is None:
        return rng.choice((f"每个{group}各有多少个{noun}?", f"统计每个{group}的{noun}数量"))
    word = rng.choice(_ZH_FUNCTIONS[term.function])
    return f"每个{group}的{noun}的{word}{term.column.phrase}是多少?"


def _chinese_order(query: Query, selected: str, noun: str, verb: str) -> str:
    column = query.order
    if column is None:
        return ""
    dated = column.kind == "date"
    if query.limit is None:
        ends = ("晚", "早") if dated else ("高", "低")
        start, stop = ends if query.descending else ends[::-1]
        return f"按{column.phrase}从{start}到{stop}{verb}所有{noun}的{selected}"
    high, low = ("最晚", "最早") if dated else ("最高", "最低")
    extreme = high if query.descending else low
    return f"{verb}{column.phrase}{extreme}的{query.limit}个{noun}的{selected}"


def _chinese_where(query: Query, rng: Random) -> str:
    if not query.where:
        return ""
    return "且".join(_qualified(c, query, "") + _chinese_condition(c, rng) for c in query.where) + "的"


def _chinese_condition(condition: Condition, rng: Random) -> str:
    op, values = condition.op, condition.values
    if op == "null":
        return rng.choice(("为空", "缺失"))
    if op == "not null":
        return "不为空"
    if op == "like":
        text = str(values[0])
        return f"包含{text.strip('%')}" if text.startswith("%") else f"以{text.strip('%')}开头"
    if op == "between":
        return f"在{values[0]}到{values[1]}之间"
    if condition.column.kind in ("date", "year") and op in _ZH_DATE_OPS:
        return _ZH_DATE_OPS[op].format(values[0])
    return f"{rng.choice(_ZH_OPS[op])}{values[0]}"
