"""Dates and times of Oracle, PostgreSQL and MySQL in SQLite: a rule for each kind of node."""

from __future__ import annotations

import re
from typing import Any

from sqlglot import exp

from posttrain.rewards.sql import moments
from posttrain.rewards.sql.translation import Rule, Writer, sqlite_text

Made = str | tuple[str, str] | None

_SPAN = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_NUMBER_FORM = re.compile(r"(FM)?([09,GD$L]*?)(?:[.D]([09]+))?", re.IGNORECASE)
# Elements of TO_CHAR and TO_DATE, longer ones first.
_ELEMENTS = {
    **{"YYYY": "%Y", "RRRR": "%Y", "MONTH": "%B", "HH24": "%H", "HH12": "%I", "MON": "%b", "DAY": "%A", "DDD": "%j"},
    **{"YY": "%y", "RR": "%y", "MM": "%m", "MI": "%M", "DD": "%d", "DY": "%a", "HH": "%I", "SS": "%S", "AM": "%p"},
    **{"PM": "%p", "IW": "%V", "Q": "%q", "FM": ""},
}
_ELEMENT = re.compile(
    '%-?[A-Za-z]|"[^"]*"|' + "|".join(f"(?:FM|TM)?{name}" for name in _ELEMENTS if name != "FM") + "|FM", re.IGNORECASE
)
_SUBDAY = ("HOUR", "MINUTE", "SECOND", "HOURS", "MINUTES", "SECONDS")


def _now(node: Any, w: Writer) -> Made:
    return moments.NOW, "timestamp"


def _today(node: Any, w: Writer) -> Made:
    return "CURRENT_DATE", "date"


def _parsed(node: Any, w: Writer) -> Made:
    """TO_DATE, TO_TIMESTAMP, STR_TO_DATE."""
    form = node.args.get("format")
    if form is not None and not isinstance(form, exp.Literal):
        return None
    made = moments.parsed(w.text(node.this), _c_form(form.this, w) if form is not None else None)
    if made is None:
        return None
    return made[0], "date" if made[1] else "timestamp"


def _written(node: Any, w: Writer) -> Made:
    """TO_CHAR and DATE_FORMAT: a moment or a number as text, by what the form is for."""
    form = node.args.get("format")
    operand = node.this.this if isinstance(node.this, exp.TsOrDsToTimestamp | exp.TsOrDsToDate) else node.this
    x = w.text(operand)
    if not isinstance(form, exp.Literal):
        return f"CAST({x} AS TEXT)" if form is None else None
    number = _NUMBER_FORM.fullmatch(form.this)
    if w.source == "mysql" or number is None or not re.search("[09]", form.this):
        return moments.written(x, _c_form(form.this, w))
    if re.search("[,GL$]", number[2], re.IGNORECASE):
        return None
    width = "" if number[1] else str(len(form.this) + 1)
    return f"PRINTF('%{width}.{len(number[3] or '')}f', {x})"


def _c_form(form: str, w: Writer) -> str:
    """A form of Oracle or PostgreSQL with C's directives; in MySQL's they are there already."""
    if w.source == "mysql":
        return form

    def said(match: re.Match[str]) -> str:
        token = match[0]
        if token.startswith(("%", '"')):
            return token.strip('"')
        return _ELEMENTS.get(token.upper().removeprefix("FM").removeprefix("TM"), token)

    return _ELEMENT.sub(said, form)


def _iso_text(node: exp.DateStrToDate, w: Writer) -> Made:
    return w.text(node.this), "date"


def _extract(node: exp.Extract, w: Writer) -> Made:
    unit, operand = node.this.name.upper(), node.expression
    if "age" in operand.meta:
        later, earlier = operand.meta["age"]
        if unit == "MONTH":
            return f"({moments.units_between(later, earlier, 'MONTH')} % 12)"
        return moments.units_between(later, earlier, unit) if unit == "YEAR" else None
    x = w.text(operand)
    if w.moment(operand) == "days":
        per_day = {"DAY": 1, "EPOCH": 86_400}.get(unit)
        return f"CAST(ROUND({x} * {per_day}, 6) AS INTEGER)" if per_day else None
    if unit == "WEEK" and w.source == "mysql":
        return moments.sunday_week(x)
    return moments.extracted(x, unit)


def _part_rule(unit: str) -> Rule:
    def rule(node: Any, w: Writer) -> Made:
        operand = node.this.this if isinstance(node.this, exp.TsOrDsToDate) else node.this
        x = w.text(operand)
        if unit == "DAYOFWEEK":
            return f"({moments.part(x, '%w')} + 1)"
        return moments.sunday_week(x) if unit == "WEEK" and w.source == "mysql" else moments.extracted(x, unit)

    return rule


def _spans(node: Any, w: Writer) -> list[tuple[str, str]] | None:
    """An interval as amounts with units; None where it is something else."""
    node = node.unnest()
    if isinstance(node, exp.Mul):
        for span, factor in ((node.this, node.expression), (node.expression, node.this)):
            found = _spans(span, w) if isinstance(span.unnest(), exp.Interval) else None
            if found is not None:
                return [(f"({amount} * {w.text(factor)})", unit) for amount, unit in found]
    if not isinstance(node, exp.Interval):
        return None
    unit = node.args.get("unit")
    if unit is not None and node.this is not None:
        amount = node.this.this if isinstance(node.this, exp.Literal) else w.text(node.this)
        return [(str(amount), unit.name)]
    text = node.this.this if isinstance(node.this, exp.Literal) else ""
    found = _SPAN.findall(text)
    return found if found and not _SPAN.sub("", text).strip() else None


def _later(x: str, kind: str | None, spans: list[tuple[str, str]], sign: int) -> Made:
    for amount, unit in spans:
        moved = moments.shifted(x, amount, unit, sign=sign)
        if moved is None:
            return None
        x = moved
        kind = "timestamp" if unit.upper() in _SUBDAY else kind
    return (x, kind) if kind else x


def _sum(node: Any, w: Writer) -> Made:
    """Moments plus or minus spans, days or moments."""
    sign = -1 if isinstance(node, exp.Sub) else 1
    left, right = node.this, node.expression
    spans = _spans(right, w)
    if spans is None and sign == 1 and _spans(left, w) is not None:
        left, right, spans = right, left, _spans(left, w)
    if spans is not None:
        return _later(w.text(left), w.moment(left), spans, sign)
    if w.source not in ("oracle", "postgres"):
        return None
    kinds = w.moment(left), w.moment(right)
    if kinds == (None, None) and not _may_be_moment(left):
        return None
    x, y = w.text(left), w.text(right)
    if sign == -1 and kinds[1] in ("date", "timestamp") and kinds[0] != "days":
        return _apart(x, y, kinds)
    if kinds[0] in ("date", "timestamp"):
        if sign == -1 and _may_be_moment(right):
            days = moments.days_later(x, y, sign=-1, is_date=kinds[0] == "date")
            return f"CASE WHEN {moments.is_moment(y)} THEN {moments.days_between(x, y, whole=False)} ELSE {days} END"
        return moments.days_later(x, y, sign=sign, is_date=kinds[0] == "date"), kinds[0]
    return _unknown_sum(left, right, w, sign)


def _apart(x: str, y: str, kinds: tuple[str | None, str | None]) -> Made:
    whole = kinds == ("date", "date")
    return moments.days_between(x, y, whole=whole), "days"


def _unknown_sum(left: Any, right: Any, w: Writer, sign: int) -> Made:
    """Two columns, or a column and a whole number: what they hold decides when the statement runs."""
    if not _may_be_moment(left):
        return None
    x, y = w.text(left), w.text(right)
    if isinstance(right, exp.Literal) and not right.is_string and right.this.isdigit():
        moved = moments.shifted(x, right.this, "DAY", sign=sign)
        return f"CASE WHEN {moments.is_moment(x)} THEN {moved} ELSE {x} {'+' if sign > 0 else '-'} {y} END"
    if sign == -1 and _may_be_moment(right):
        both = f"{moments.is_moment(x)} AND {moments.is_moment(y)}"
        return f"CASE WHEN {both} THEN {moments.days_between(x, y, whole=False)} ELSE {x} - {y} END"
    return None


def _may_be_moment(node: Any) -> bool:
    node = node.unnest()
    return isinstance(node, exp.Column) or (isinstance(node, exp.Max | exp.Min) and isinstance(node.this, exp.Column))


def _age(node: exp.Anonymous, w: Writer) -> Made:
    later, earlier = node.expressions if len(node.expressions) == 2 else (None, node.expressions[0])
    pair = (w.text(later) if later is not None else "CURRENT_DATE", w.text(earlier))
    text = moments.days_between(*pair, whole=False)
    if isinstance(node.parent, exp.Extract):
        marked = exp.Var(this=text)
        marked.meta["age"] = pair
        node.replace(marked)
        return None
    return text, "days"


def _date_add(node: Any, w: Writer) -> Made:
    sign = -1 if isinstance(node, exp.DateSub) else 1
    amount, unit = node.expression, node.args.get("unit")
    spans = _spans(amount, w)
    if spans is None:
        said = amount.this if isinstance(amount, exp.Literal) else w.text(amount)
        spans = [(str(said), unit.name if unit is not None else "DAY")]
    return _later(w.text(node.this), w.moment(node.this), spans, sign)


def _add_date(node: exp.Anonymous, w: Writer) -> Made:
    """ADDDATE and SUBDATE of a span or a number of days."""
    if len(node.expressions) != 2:
        return None
    moment, amount = node.expressions
    spans = _spans(amount, w) or [(sqlite_text(amount), "DAY")]
    return _later(w.text(moment), w.moment(moment), spans, -1 if node.name.upper() == "SUBDATE" else 1)


def _add_months(node: exp.AddMonths, w: Writer) -> Made:
    made = moments.shifted(w.text(node.this), w.text(node.expression), "MONTH", sign=1, keep_end_of_month=True)
    kind = w.moment(node.this)
    return (made, kind) if made and kind else made


def _months_between(node: exp.MonthsBetween, w: Writer) -> Made:
    return moments.months_between(w.text(node.this), w.text(node.expression))


def _last_day(node: exp.LastDay, w: Writer) -> Made:
    return moments.last_day(w.text(node.this)), "date"


def _truncated(node: Any, w: Writer) -> Made:
    made = moments.beginning(w.text(node.this), node.args["unit"].name)
    return (made, "date") if made else None


def _trunc_of_unknown(node: exp.Anonymous, w: Writer) -> Made:
    """Oracle's TRUNC of a column: of a date its day, of a number its whole part."""
    if len(node.expressions) != 1:
        return None
    x, kind = w.text(node.expressions[0]), w.moment(node.expressions[0])
    if kind in ("date", "timestamp"):
        return f"DATE({x})", "date"
    if kind == "days":
        return f"CAST({x} AS INTEGER)"
    return f"CASE WHEN {moments.is_moment(x)} THEN DATE({x}) ELSE CAST({x} AS INTEGER) END"


def _date_diff(node: exp.DateDiff, w: Writer) -> Made:
    unit = node.args.get("unit")
    x, y = w.text(node.this), w.text(node.expression)
    if unit is None or unit.name.upper() == "DAY":
        return moments.days_between(x, y, whole=True)
    return moments.units_between(x, y, unit.name)


def _timestamp_diff(node: exp.TimestampDiff, w: Writer) -> Made:
    return moments.units_between(w.text(node.this), w.text(node.expression), node.args["unit"].name)


def _from_unix(node: exp.UnixToTime, w: Writer) -> Made:
    return f"DATETIME({w.text(node.this)}, 'unixepoch')", "timestamp"


def _to_unix(node: exp.Anonymous, w: Writer) -> Made:
    return moments.part(w.text(node.expressions[0]) if node.expressions else moments.NOW, "%s")


def _weekday(node: exp.Anonymous, w: Writer) -> Made:
    return f"(({moments.part(w.text(node.expressions[0]), '%w')} + 6) % 7)"


def _day_name(node: exp.Dayname, w: Writer) -> Made:
    return moments.day_name(w.text(node.this))


def _month_name(node: exp.Anonymous, w: Writer) -> Made:
    return moments.written(w.text(node.expressions[0]), "%B")


def _made_date(node: exp.Anonymous, w: Writer) -> Made:
    if len(node.expressions) != 3:
        return None
    return f"PRINTF('%04d-%02d-%02d', {', '.join(map(w.text, node.expressions))})", "date"


DATE_FUNCTIONS: dict[str, Rule] = {
    "NOW": _now,
    "SYSDATE": _now,
    "GETDATE": _now,
    "LOCALTIMESTAMP": _now,
    "LOCALTIME": _now,
    "UTC_TIMESTAMP": _now,
    "AGE": _age,
    "ADDDATE": _add_date,
    "SUBDATE": _add_date,
    "TRUNC": _trunc_of_unknown,
    "UNIX_TIMESTAMP": _to_unix,
    "WEEKDAY": _weekday,
    "MONTHNAME": _month_name,
    "MAKE_DATE": _made_date,
}

DATE_RULES: dict[type, Rule] = {
    exp.CurrentTimestamp: _now,
    exp.Systimestamp: _now,
    exp.Localtimestamp: _now,
    exp.UtcTimestamp: _now,
    exp.UtcDate: _today,
    exp.StrToDate: _parsed,
    exp.StrToTime: _parsed,
    exp.TimeToStr: _written,
    exp.ToChar: _written,
    exp.DateStrToDate: _iso_text,
    exp.Extract: _extract,
    exp.Year: _part_rule("YEAR"),
    exp.Quarter: _part_rule("QUARTER"),
    exp.Month: _part_rule("MONTH"),
    exp.Week: _part_rule("WEEK"),
    exp.WeekOfYear: _part_rule("WEEKISO"),
    exp.Day: _part_rule("DAY"),
    exp.DayOfMonth: _part_rule("DAY"),
    exp.DayOfWeek: _part_rule("DAYOFWEEK"),
    exp.DayOfYear: _part_rule("DOY"),
    exp.Hour: _part_rule("HOUR"),
    exp.Minute: _part_rule("MINUTE"),
    exp.Second: _part_rule("SECOND"),
    exp.Dayname: _day_name,
    exp.Add: _sum,
    exp.Sub: _sum,
    exp.DateAdd: _date_add,
    exp.DateSub: _date_add,
    exp.AddMonths: _add_months,
    exp.MonthsBetween: _months_between,
    exp.LastDay: _last_day,
    exp.DateTrunc: _truncated,
    exp.TimestampTrunc: _truncated,
    exp.DateDiff: _date_diff,
    exp.TimestampDiff: _timestamp_diff,
    exp.UnixToTime: _from_unix,
}
