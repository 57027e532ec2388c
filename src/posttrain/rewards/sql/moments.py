"""Dates and times in SQLite, which keeps them as ISO text: each function gives the text of an expression."""

from __future__ import annotations

import re

NOW = "CURRENT_TIMESTAMP"

_MONTHS = ["January", "February", "March", "April", "May", "June"]
_MONTHS += ["July", "August", "September", "October", "November", "December"]
_DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
_DIRECTIVE = re.compile(r"%-?[A-Za-z%]|[^%]+|%")
_WIDTHS = {"%Y": 4, "%m": 2, "%d": 2, "%H": 2, "%M": 2, "%S": 2, "%b": 3, "%y": 2}
_PLAIN = ("%Y", "%m", "%d", "%H", "%M", "%S", "%j", "%w", "%s")

# Of one unit: how many of SQLite's own, and which.
_UNITS = {
    "YEAR": (12, "month"),
    "QUARTER": (3, "month"),
    "MONTH": (1, "month"),
    "WEEK": (7, "day"),
    "DAY": (1, "day"),
    "HOUR": (1, "hour"),
    "MINUTE": (1, "minute"),
    "SECOND": (1, "second"),
}
_SECONDS = {"WEEK": 604_800, "DAY": 86_400, "HOUR": 3600, "MINUTE": 60, "SECOND": 1}


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def is_moment(x: str) -> str:
    """Whether a value looks like an ISO date, decided when the statement runs."""
    return f"(SUBSTR({x}, 5, 1) || SUBSTR({x}, 8, 1) = '--')"


def part(x: str, directive: str) -> str:
    """A number of a moment, such as %Y."""
    return f"CAST(STRFTIME('{directive}', {x}) AS INTEGER)"


def extracted(x: str, unit: str) -> str | None:
    """EXTRACT and its kin; None for a unit that is not known."""
    simple = {"YEAR": "%Y", "MONTH": "%m", "DAY": "%d", "HOUR": "%H", "MINUTE": "%M", "SECOND": "%S"}
    simple |= {"DOY": "%j", "DOW": "%w", "EPOCH": "%s"}
    if unit in simple:
        return part(x, simple[unit])
    thursday = f"DATE({x}, '-3 days', 'weekday 4')"
    iso_week = f"(({part(thursday, '%j')} - 1) / 7 + 1)"
    return {
        "QUARTER": f"(({part(x, '%m')} + 2) / 3)",
        "ISODOW": f"(({part(x, '%w')} + 6) % 7 + 1)",
        "WEEK": iso_week,
        "WEEKISO": iso_week,
    }.get(unit)


def sunday_week(x: str) -> str:
    """MySQL's WEEK: weeks begin on Sunday, days before the first one are in week 0."""
    return f"(({part(x, '%j')} + 6 - {part(x, '%w')}) / 7)"


def shifted(x: str, amount: str, unit: str, *, sign: int, keep_end_of_month: bool = False) -> str | None:
    """A moment some units later; a month too short for its day ends on its last day, as other databases have it.

    Args:
        x: a date or a time stamp; what it is, it stays, unless hours or less are added.
        amount: of units, as an expression or a number.
        unit: YEAR to SECOND. sign: 1 or -1.
        keep_end_of_month: the last day of a month stays one, as in Oracle's ADD_MONTHS.

    Returns:
        None for a unit that is not known.
    """
    known = _UNITS.get(unit.upper().removesuffix("S"))
    if known is None:
        return None
    factor, own = sign * known[0], known[1]
    number = re.fullmatch(r"\(*'?([-+]?\d+)'?\)*", amount)
    count = str(factor * int(number[1])) if number else f"({factor} * ({amount}))"
    if own in ("hour", "minute", "second"):
        return f"DATETIME({x}, {_modifier(count, own)})"
    if own == "day":
        return f"(DATE({x}, {_modifier(count, own)}) || SUBSTR({x}, 11))"
    end = f"DATE({x}, 'start of month', {_modifier(_plus_one(count), own)}, '-1 day')"
    date = f"MIN(DATE({x}, {_modifier(count, own)}), {end})"
    if keep_end_of_month:
        date = f"CASE WHEN DATE({x}) = {last_day(x)} THEN {end} ELSE {date} END"
    return f"({date} || SUBSTR({x}, 11))"


def _plus_one(count: str) -> str:
    return f"({count} + 1)" if count.startswith("(") else str(int(count) + 1)


def _modifier(count: str, unit: str) -> str:
    return f"({count} || ' {unit}')" if count.startswith("(") else f"'{int(count):+d} {unit}'"


def days_later(x: str, amount: str, *, sign: int, is_date: bool) -> str:
    """A moment some days later, parts of days too where it has a time."""
    text = f"(({'-' if sign < 0 else ''}({amount})) || ' days')"
    return f"DATE({x}, {text})" if is_date else f"DATETIME({x}, {text})"


def days_between(later: str, earlier: str, *, whole: bool) -> str:
    """Days from one moment to another."""
    days = f"(JULIANDAY({later}) - JULIANDAY({earlier}))"
    return f"CAST(JULIANDAY(DATE({later})) - JULIANDAY(DATE({earlier})) AS INTEGER)" if whole else days


def units_between(later: str, earlier: str, unit: str) -> str | None:
    """Whole units from one moment to another, towards zero, as MySQL's TIMESTAMPDIFF."""
    unit = unit.upper().removesuffix("S")
    if unit in _SECONDS:
        seconds = f"({part(later, '%s')} - {part(earlier, '%s')})"
        return f"({seconds} / {_SECONDS[unit]})"
    if unit not in ("MONTH", "QUARTER", "YEAR"):
        return None
    a, b = (f"STRFTIME('%d %H:%M:%S', {x})" for x in (later, earlier))
    months = f"(({part(later, '%Y')} - {part(earlier, '%Y')}) * 12 + {part(later, '%m')} - {part(earlier, '%m')}"
    missing = f"CASE WHEN DATETIME({later}) >= DATETIME({earlier}) THEN {a} < {b} ELSE -({a} > {b}) END"
    whole = f"{months} - {missing})"
    return {"MONTH": whole, "QUARTER": f"({whole} / 3)", "YEAR": f"({whole} / 12)"}[unit]


def months_between(later: str, earlier: str) -> str:
    """Oracle's MONTHS_BETWEEN: whole where both are the same day or the last one of a month, else in 31 parts."""
    months = f"({part(later, '%Y')} - {part(earlier, '%Y')}) * 12 + {part(later, '%m')} - {part(earlier, '%m')}"
    a, b = (f"({part(x, '%d')} + JULIANDAY({x}) - JULIANDAY(DATE({x})))" for x in (later, earlier))
    same = f"STRFTIME('%d', {later}) = STRFTIME('%d', {earlier})"
    last = f"DATE({later}) = {last_day(later)} AND DATE({earlier}) = {last_day(earlier)}"
    return f"({months} + CASE WHEN {same} OR ({last}) THEN 0 ELSE ({a} - {b}) / 31.0 END)"


def last_day(x: str) -> str:
    """The last day of a moment's month."""
    return f"DATE({x}, 'start of month', '+1 month', '-1 day')"


def beginning(x: str, unit: str) -> str | None:
    """The beginning of the unit that a moment lies in; None for a unit that is not known."""
    unit = unit.upper()
    names = {"DD": "DAY", "J": "DAY", "DDD": "DAY", "MM": "MONTH", "MON": "MONTH", "RM": "MONTH", "Q": "QUARTER"}
    names |= {"YYYY": "YEAR", "YY": "YEAR", "Y": "YEAR", "SYYYY": "YEAR", "IW": "WEEK", "HH": "HOUR", "HH24": "HOUR"}
    unit = {**names, "MI": "MINUTE"}.get(unit, unit)
    return {
        "DAY": f"DATE({x})",
        "MONTH": f"DATE({x}, 'start of month')",
        "YEAR": f"DATE({x}, 'start of year')",
        "QUARTER": f"DATE({x}, 'start of month', (-(({part(x, '%m')} - 1) % 3)) || ' months')",
        "WEEK": f"DATE({x}, '-6 days', 'weekday 1')",
        "HOUR": f"STRFTIME('%Y-%m-%d %H:00:00', {x})",
        "MINUTE": f"STRFTIME('%Y-%m-%d %H:%M:00', {x})",
    }.get(unit)


def written(x: str, form: str) -> str | None:
    """A moment in a form with C's directives; None where SQLite cannot say it."""
    pieces: list[str] = []
    for token in _DIRECTIVE.findall({"%T": "%H:%M:%S", "%F": "%Y-%m-%d"}.get(form, form).replace("%T", "%H:%M:%S")):
        piece = _said(x, token)
        if piece is None:
            return None
        pieces.append(piece)
    merged = re.sub(rf"', {re.escape(x)}\) \|\| STRFTIME\('", "", " || ".join(pieces) or "''")
    return merged if len(pieces) == 1 or " || " not in merged else f"({merged})"


def _said(x: str, token: str) -> str | None:
    if not token.startswith("%") or token in _PLAIN:
        return f"STRFTIME({quoted(token)}, {x})"
    if token.startswith("%-") and f"%{token[2]}" in _PLAIN:
        return f"CAST({part(x, f'%{token[2]}')} AS TEXT)"
    hour = f"(({part(x, '%H')} + 11) % 12 + 1)"
    return {
        "%y": f"SUBSTR(STRFTIME('%Y', {x}), 3, 2)",
        "%b": _named([name[:3] for name in _MONTHS], part(x, "%m")),
        "%B": _named(_MONTHS, part(x, "%m")),
        "%a": _named([name[:3] for name in _DAYS], f"({part(x, '%w')} + 1)"),
        "%A": _named(_DAYS, f"({part(x, '%w')} + 1)"),
        "%e": f"CAST({part(x, '%d')} AS TEXT)",
        "%I": f"SUBSTR('0' || {hour}, -2)",
        "%V": f"SUBSTR('0' || {extracted(x, 'WEEK')}, -2)",
        "%q": f"CAST({extracted(x, 'QUARTER')} AS TEXT)",
        "%p": f"CASE WHEN {part(x, '%H')} < 12 THEN 'AM' ELSE 'PM' END",
        "%f": f"SUBSTR(STRFTIME('%f', {x}), 4) || '000'",
    }.get(token)


def day_name(x: str) -> str:
    """The English name of a weekday."""
    return _named(_DAYS, f"({part(x, '%w')} + 1)")


def _named(names: list[str], number: str) -> str:
    """The name with a number from 1 on, out of one text of equally wide names."""
    width = max(map(len, names))
    table = "".join(f"{name:<{width}}" for name in names)
    return f"RTRIM(SUBSTR({quoted(table)}, {width} * {number} - {width - 1}, {width}))"


def parsed(x: str, form: str | None) -> tuple[str, bool] | None:
    """A text in a form with C's directives as ISO text, and whether that is a date alone; None for unknown forms.

    Every number is as wide as its form, as in 05/01/2024.
    """
    if not form or form == "%Y-%m-%d":
        return f"DATE({x})", True
    if form.startswith("%Y-%m-%d %H:%M"):
        return f"DATETIME({x})", False
    places, at = {}, 1
    for token in _DIRECTIVE.findall(form):
        if token.startswith("%"):
            if token not in _WIDTHS:
                return None
            places[token] = f"SUBSTR({x}, {at}, {_WIDTHS[token]})"
            at += _WIDTHS[token]
        else:
            at += len(token)
    if "%y" in places:
        places["%Y"] = f"'20' || {places['%y']}"
    if "%b" in places:
        table = quoted("".join(name[:3].lower() for name in _MONTHS))
        places["%m"] = f"PRINTF('%02d', (INSTR({table}, LOWER({places['%b']})) + 2) / 3)"
    if "%Y" not in places:
        return None
    date = f"{places['%Y']} || '-' || {places.get('%m', quoted('01'))} || '-' || {places.get('%d', quoted('01'))}"
    if "%H" not in places:
        return f"DATE({date})", True
    zero = quoted("00")
    time = f"{places['%H']} || ':' || {places.get('%M', zero)} || ':' || {places.get('%S', zero)}"
    return f"DATETIME({date} || ' ' || {time})", False
