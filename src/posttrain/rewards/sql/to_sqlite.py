"""What Oracle, PostgreSQL and MySQL say and SQLite does not: a rule for each kind of node."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from sqlglot import exp

from posttrain.rewards.sql import moments
from posttrain.rewards.sql.to_sqlite_dates import DATE_FUNCTIONS, DATE_RULES
from posttrain.rewards.sql.translation import Rule, Writer, sqlite_text

_SORTS_IN_AGGREGATES = sqlite3.sqlite_version_info >= (3, 44)
_MAX_FILL = 200
_REGEX = re.compile(r"(\^?)([\w\s,:;@/%-]*)(\$?)")


def _concat(node: exp.Concat, w: Writer) -> str:
    texts = [w.text(part) for part in node.expressions]
    if node.args.get("coalesce"):
        texts = [f"COALESCE({text}, '')" for text in texts]
    return "(" + " || ".join(texts) + ")"


def _double_pipe(node: exp.DPipe, w: Writer) -> str | None:
    if w.source != "oracle":
        return None
    sides = [w.text(side) for side in (node.this, node.expression)]
    return "(" + " || ".join(text if text.startswith("'") else f"COALESCE({text}, '')" for text in sides) + ")"


def _concat_ws(node: exp.ConcatWs, w: Writer) -> str:
    separator, *parts = (w.text(part) for part in node.expressions)
    joined = " || ".join(f"COALESCE({separator} || {part}, '')" for part in parts)
    return f"SUBSTR({joined}, LENGTH({separator}) + 1)"


def _left(node: exp.Left, w: Writer) -> str:
    return f"SUBSTR({w.text(node.this)}, 1, {w.text(node.expression)})"


def _right(node: exp.Right, w: Writer) -> str:
    return f"SUBSTR({w.text(node.this)}, -({w.text(node.expression)}))"


def _pad(node: exp.Pad, w: Writer) -> str | None:
    width, fill = node.expression, node.args.get("fill_pattern")
    filling = fill.this if isinstance(fill, exp.Literal) else " " if fill is None else ""
    if not isinstance(width, exp.Literal) or not width.this.isdigit() or not filling or int(width.this) > _MAX_FILL:
        return None
    x, n = w.text(node.this), int(width.this)
    blanks = f"SUBSTR({moments.quoted((filling * n)[:n])}, 1, {n} - LENGTH({x}))"
    padded = f"{blanks} || {x}" if node.args.get("is_left") else f"{x} || {blanks}"
    return f"CASE WHEN LENGTH({x}) >= {n} THEN SUBSTR({x}, 1, {n}) ELSE {padded} END"


def _repeat(node: exp.Repeat, w: Writer) -> str:
    blanks = f"SUBSTR({moments.quoted(' ' * _MAX_FILL)}, 1, {w.text(node.args['times'])})"
    return f"REPLACE({blanks}, ' ', {w.text(node.this)})"


def _split_part(node: exp.SplitPart, w: Writer) -> str | None:
    index = node.args["part_index"]
    if not isinstance(index, exp.Literal) or index.this not in ("1", "2", "3"):
        return None
    rest, mark = w.text(node.this), w.text(node.args["delimiter"])
    for _ in range(int(index.this) - 1):
        after = f"SUBSTR({rest}, INSTR({rest}, {mark}) + LENGTH({mark}))"
        rest = f"CASE WHEN INSTR({rest}, {mark}) THEN {after} ELSE '' END"
    return _before(rest, mark)


def _before(x: str, mark: str) -> str:
    return f"CASE WHEN INSTR({x}, {mark}) THEN SUBSTR({x}, 1, INSTR({x}, {mark}) - 1) ELSE {x} END"


def _substring_index(node: exp.SubstringIndex, w: Writer) -> str | None:
    x, mark, count = w.text(node.this), w.text(node.args["delimiter"]), sqlite_text(node.args["count"])
    if count == "1":
        return _before(x, mark)
    return f"REPLACE({x}, RTRIM({x}, REPLACE({x}, {mark}, '')), '')" if count == "-1" else None


def _group_concat(node: exp.GroupConcat, w: Writer) -> str | None:
    inner, separator = node.this, node.args.get("separator")
    order = inner if isinstance(inner, exp.Order) else None
    inner = order.this if order else inner
    if order and _SORTS_IN_AGGREGATES and not isinstance(inner, exp.Distinct):
        return None
    mark = w.text(separator) if separator else "','"
    if not isinstance(inner, exp.Distinct):
        return f"GROUP_CONCAT({w.text(inner)}, {mark})"
    plain = f"GROUP_CONCAT(DISTINCT {w.text(inner.expressions[0])})"
    return plain if mark == "','" else f"REPLACE({plain}, ',', {mark})"


def _like(node: exp.Like, w: Writer) -> str | None:
    """LIKE minds case in Oracle and PostgreSQL; SQLite's does not."""
    pattern = node.expression
    if w.source not in ("oracle", "postgres") or not isinstance(pattern, exp.Literal) or "\\" in pattern.this:
        return None
    if isinstance(node.parent, exp.Escape) or pattern.this.lower() == pattern.this.upper():
        return None
    x, wanted = w.text(node.this), str(pattern.this)
    said = _simple_match(x, wanted.strip("%"), wanted.startswith("%"), wanted.endswith("%"))
    if re.search(r"[%_]", wanted.strip("%")):
        pieces = [f"INSTR({x}, {moments.quoted(piece)}) > 0" for piece in re.split("[%_]+", wanted) if piece]
        said = f"({x} LIKE {moments.quoted(wanted)} AND {' AND '.join(pieces)})"
    return f"(NOT {said})" if node.args.get("negate") else said


def _simple_match(x: str, piece: str, open_left: bool, open_right: bool) -> str:
    text = moments.quoted(piece)
    if open_left and open_right:
        return f"(INSTR({x}, {text}) > 0)"
    if open_left:
        return f"(SUBSTR({x}, -{len(piece)}) = {text})"
    return f"(SUBSTR({x}, 1, {len(piece)}) = {text})" if open_right else f"({x} = {text})"


def _regexp(node: Any, w: Writer) -> str | None:
    """A regular expression that is plain text, at most tied to the beginning or the end."""
    pattern = node.expression
    match = _REGEX.fullmatch(pattern.this) if isinstance(pattern, exp.Literal) else None
    if match is None or not match[2]:
        return None
    x, piece = w.text(node.this), match[2]
    if isinstance(node, exp.RegexpILike) or w.source == "mysql":
        x, piece = f"LOWER({x})", piece.lower()
    return _simple_match(x, piece, not match[1], not match[3])


def _compared_text(node: Any, w: Writer) -> str | None:
    """MySQL's comparisons with a text do not mind case."""
    if w.source != "mysql":
        return None
    texts = node.expressions if isinstance(node, exp.In) else [node.this, node.expression]
    if not any(isinstance(text, exp.Literal) and text.is_string and _has_letters(text.this) for text in texts):
        return None
    if not isinstance(node, exp.In):
        sign = "=" if isinstance(node, exp.EQ) else "<>"
        return f"({w.text(node.this)} {sign} {w.text(node.expression)} COLLATE NOCASE)"
    return f"({w.text(node.this)} COLLATE NOCASE IN ({', '.join(map(w.text, node.expressions))}))"


def _has_letters(text: str) -> bool:
    return text.lower() != text.upper()


def _equal(node: exp.EQ, w: Writer) -> str | None:
    if isinstance(node.expression, exp.Any):
        return _quantified_equality(node, w, node.expression, "IN")
    return _compared_text(node, w)


def _unequal(node: exp.NEQ, w: Writer) -> str | None:
    if isinstance(node.expression, exp.All):
        return _quantified_equality(node, w, node.expression, "NOT IN")
    return _compared_text(node, w)


def _quantified_equality(node: Any, w: Writer, quantified: Any, word: str) -> str | None:
    inner = quantified.this.unnest()
    if isinstance(inner, exp.Query):
        return f"({w.text(node.this)} {word} ({sqlite_text(inner)}))"
    if isinstance(inner, exp.Array):
        return f"({w.text(node.this)} {word} ({', '.join(map(w.text, inner.expressions))}))"
    return None


def _quantified(node: Any, w: Writer) -> str | None:
    """``> ALL`` and ``> ANY`` of a query as a comparison with its largest or smallest value."""
    quantified = node.expression
    if not isinstance(quantified, exp.All | exp.Any):
        return None
    inner = quantified.this.unnest()
    if not isinstance(inner, exp.Query):
        return None
    sign = {exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<="}[type(node)]
    bound = "MAX" if (sign[0] == ">") == isinstance(quantified, exp.All) else "MIN"
    values = f"(WITH quantified(value) AS ({sqlite_text(inner)}) SELECT {bound}(value) FROM quantified)"
    return f"({w.text(node.this)} {sign} {values})"


def _cast(node: exp.Cast, w: Writer) -> str | tuple[str, str] | None:
    kind, x = node.to.this, w.text(node.this)
    size = [int(p.this.this) for p in node.to.expressions if isinstance(p.this, exp.Literal) and p.this.this.isdigit()]
    types = exp.DataType.Type
    if kind == types.DATE:
        return f"DATE({x})", "date"
    if kind in (types.TIMESTAMP, types.DATETIME, types.TIMESTAMPTZ, types.TIMESTAMPLTZ, types.TIMESTAMPNTZ):
        return f"DATETIME({x})", "timestamp"
    if kind == types.TIME:
        return f"TIME({x})"
    if kind == types.DECIMAL and size:
        scale = size[1] if len(size) > 1 else 0
        return f"ROUND(CAST({x} AS REAL), {scale})"
    if kind in (types.INT, types.BIGINT, types.SMALLINT, types.TINYINT) and w.source in ("postgres", "oracle"):
        return f"CAST(ROUND({x}) AS INTEGER)"
    if kind in exp.DataType.TEXT_TYPES and size:
        return f"SUBSTR(CAST({x} AS TEXT), 1, {size[0]})"
    return None


def _truncated(node: exp.Trunc, w: Writer) -> str:
    x, decimals = w.text(node.this), node.args.get("decimals")
    if decimals is None:
        return f"CAST({x} AS INTEGER)"
    digits = sqlite_text(decimals)
    if not digits.isdigit() or int(digits) > 12:
        return f"CAST({x} AS INTEGER)"
    return f"(CAST(ROUND({x} * {10 ** int(digits)}, 6) AS INTEGER) / {10 ** int(digits)}.0)"


def _floor(node: exp.Floor, w: Writer) -> str:
    x = w.text(node.this)
    return f"(CAST({x} AS INTEGER) - ({x} < CAST({x} AS INTEGER)))"


def _ceil(node: exp.Ceil, w: Writer) -> str:
    x = w.text(node.this)
    return f"(CAST({x} AS INTEGER) + ({x} > CAST({x} AS INTEGER)))"


def _greatest(node: exp.Greatest, w: Writer) -> str | None:
    return _extreme(node, w, "MAX")


def _least(node: exp.Least, w: Writer) -> str | None:
    return _extreme(node, w, "MIN")


def _extreme(node: Any, w: Writer, name: str) -> str | None:
    if w.source == "postgres":  # there NULLs are left out, which sqlglot writes
        return None
    return f"{name}({', '.join(map(w.text, (node.this, *node.expressions)))})"


def _variance(node: Any, w: Writer) -> str | None:
    if isinstance(node.parent, exp.Window | exp.Filter) or isinstance(node.this, exp.Distinct):
        return None
    x = w.text(node.this)
    population = isinstance(node, exp.StddevPop | exp.VariancePop)
    population = population or (w.source == "mysql" and type(node) in (exp.Stddev, exp.Variance))
    of = f"COUNT({x})" if population else f"(COUNT({x}) - 1)"
    variance = f"(MAX(0.0, SUM(1.0 * {x} * {x}) - SUM({x}) * 1.0 * SUM({x}) / COUNT({x})) / {of})"
    return f"SQRT({variance})" if isinstance(node, exp.Stddev | exp.StddevPop | exp.StddevSamp) else variance


def _xor(node: exp.Xor, w: Writer) -> str:
    return f"((NOT {w.text(node.this)}) <> (NOT {w.text(node.expression)}))"


def _elt(node: exp.Elt, w: Writer) -> str:
    cases = " ".join(f"WHEN {i} THEN {w.text(item)}" for i, item in enumerate(node.expressions, start=1))
    return f"CASE {w.text(node.this)} {cases} END"


def _anonymous(node: exp.Anonymous, w: Writer) -> str | tuple[str, str] | None:
    name, texts = node.name.upper(), [w.text(part) for part in node.expressions]
    if name in DATE_FUNCTIONS:
        return DATE_FUNCTIONS[name](node, w)
    if name == "MID" and len(texts) == 3:
        return f"SUBSTR({', '.join(texts)})"
    if name == "WM_CONCAT" and len(texts) == 1:
        return f"GROUP_CONCAT({texts[0]})"
    if name == "FIND_IN_SET" and len(texts) == 2:
        return f"(INSTR(',' || {texts[1]} || ',', ',' || {texts[0]} || ',') > 0)"
    if name == "FIELD" and len(texts) > 1:
        cases = " ".join(f"WHEN {text} THEN {i}" for i, text in enumerate(texts[1:], start=1))
        return f"CASE {texts[0]} {cases} ELSE 0 END"
    return None


RULES: dict[type, Rule] = {
    **DATE_RULES,
    exp.Anonymous: _anonymous,
    exp.Concat: _concat,
    exp.DPipe: _double_pipe,
    exp.ConcatWs: _concat_ws,
    exp.Left: _left,
    exp.Right: _right,
    exp.Pad: _pad,
    exp.Repeat: _repeat,
    exp.SplitPart: _split_part,
    exp.SubstringIndex: _substring_index,
    exp.GroupConcat: _group_concat,
    exp.Like: _like,
    exp.RegexpLike: _regexp,
    exp.RegexpILike: _regexp,
    exp.EQ: _equal,
    exp.NEQ: _unequal,
    exp.In: _compared_text,
    exp.GT: _quantified,
    exp.GTE: _quantified,
    exp.LT: _quantified,
    exp.LTE: _quantified,
    exp.Cast: _cast,
    exp.Trunc: _truncated,
    exp.Floor: _floor,
    exp.Ceil: _ceil,
    exp.Greatest: _greatest,
    exp.Least: _least,
    exp.Stddev: _variance,
    exp.StddevPop: _variance,
    exp.StddevSamp: _variance,
    exp.Variance: _variance,
    exp.VariancePop: _variance,
    exp.Xor: _xor,
    exp.Elt: _elt,
}
