"""Built-in rules: what a completion is worth can be read off its text."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain.config.reward_names import RewardName
from posttrain.errors import UserError
from posttrain.types import RolloutBatch

REFERENCE_COLUMNS = ("answer", "gold", "output", "reference")
"""Where ``exact_match`` and ``numeric_match`` look for the right answer, in this order."""

Rule = Callable[[str, Mapping[str, Any]], float]
"""(completion, columns of its prompt's row) -> what it is worth."""

# characters that are words of their own where no spaces part them: kana, CJK ideographs, Hangul
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_UNIT = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]{{1,20}}|[^\w\s]")
_NUMBER = re.compile(
    r"(?P<sign>[-+])?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE](?P<power>[-+]?\d{1,3}))?"
    r"\s*(?P<unit>[%万亿])?"
)
_UNITS = {"万": 1e4, "亿": 1e8}
_FENCE = re.compile(r"```(?:json)?\s*\n(?P<body>.*?)\n?```", re.DOTALL | re.IGNORECASE)
_CLOSE = 1e-6


class RuleReward:
    """What a rule says of each completion."""

    is_apart = True

    def __init__(self, rule: Rule, *, name: str, reads: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        """Take a rule.

        Args:
            rule: see ``Rule``. name: as the user wrote it.
            reads: takes what the rule needs from a row; raises KeyError or ValueError where the row has no such thing.
        """
        self._rule, self._name, self._reads = rule, name, reads

    @classmethod
    def named(cls, name: RewardName) -> RuleReward:
        """The rule that an entry of ``reward_funcs`` stands for."""
        return _MAKERS[name.kind](name)

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse rows that lack what the rule compares with.

        Raises:
            UserError: names the first of them.
        """
        for number, row in enumerate(rows if self._reads else (), start=1):
            self._read(row, number)

    def _read(self, row: Mapping[str, Any], number: int) -> None:
        assert self._reads is not None
        try:
            self._reads(row)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"reward_funcs: {self._name} cannot judge row {number} of the data: {error.args[0]} (columns: "
                f"{', '.join(sorted(row)) or 'none'})"
            ) from None

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] what each is worth.

        Raises:
            UserError: a row lacks what the rule compares with.
        """
        found = []
        for number, completion in enumerate(batch.completions, start=1):
            row = batch.extras[number - 1] if batch.extras else {}
            if self._reads is not None:
                self._read(row, number)
            found.append(self._rule(completion, row))
        return torch.tensor(found, dtype=torch.float32, device=batch.input_ids.device)


def matches(pattern: str) -> Rule:
    """1 where the regular expression is found in the completion, else 0."""
    compiled = re.compile(pattern)
    return lambda completion, row: float(compiled.search(completion) is not None)


def same_text(completion: str, reference: str) -> float:
    """1 for the same text, else 0; width of characters (１ and 1) and white space do not count."""
    return float(_plain(completion) == _plain(reference))


def same_number(completion: str, reference: str, tolerance: float = _CLOSE) -> float:
    """1 where the last number of the completion is the last one of the reference, else 0.

    Thousands may be set off by commas, full-width digits count, as do 万 and 亿. Where only one side has a percent
    sign, 12% is both 12 and 0.12. They may differ by ``tolerance``, a share of the larger one.
    """
    ours, theirs = last_number(completion), last_number(reference)
    if ours is None or theirs is None:
        return 0.0
    (value, is_percent), (wanted, wants_percent) = ours, theirs
    wanted_values = [wanted]
    if is_percent != wants_percent:
        wanted_values.append(wanted * 100 if is_percent else wanted / 100)
    return float(any(math.isclose(value, each, rel_tol=tolerance, abs_tol=1e-9) for each in wanted_values))


def last_number(text: str) -> tuple[float, bool] | None:
    """The last number in a text and whether it is a percentage; None where there is none.

    A minus behind a digit or letter is a dash: 3-5 ends in 5.

    >>> last_number("约为 1,234.5 万元。"), last_number("-7%"), last_number("none")
    ((12345000.0, False), (-7.0, True), None)
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    all_found = list(_NUMBER.finditer(text))
    if not all_found:
        return None
    found = all_found[-1]
    value = float(f"{found['digits'].replace(',', '')}e{found['power'] or 0}")
    before = text[found.start() - 1 : found.start()]
    if found["sign"] == "-" and not re.match(r"[0-9A-Za-z)]", before):
        value = -value
    return value * _UNITS.get(found["unit"] or "", 1.0), found["unit"] == "%"


def is_json(completion: str) -> float:
    """1 where the completion, or the one fenced block in it, is a JSON object or list, else 0."""
    fenced = _FENCE.findall(completion)
    text = fenced[0] if len(fenced) == 1 else completion
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    return float(isinstance(value, dict | list))


def length_within(text: str, least: int, most: int | None) -> float:
    """0 within the range of characters; outside, minus the share by which it is too short or too long, at worst −1."""
    length = len(text)
    if length < least:
        return (length - least) / least
    if most is not None and length > most:
        return -min(1.0, (length - most) / most)
    return 0.0


def repeated_share(text: str, size: int) -> float:
    """Share of runs of ``size`` words that have occurred before; characters of Chinese and Japanese are words.

    >>> repeated_share("好的好的好的", 2), repeated_share("no word comes twice", 1)
    (0.6, 0.0)
    """
    units = _UNIT.findall(text)
    runs = [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def reference_text(row: Mapping[str, Any], column: str | None) -> str:
    """The right answer of a row: ``column``, else the first of ``REFERENCE_COLUMNS`` that it has.

    Raises:
        KeyError: there is none. ValueError: it is neither text nor a number.
    """
    name = column or next((name for name in REFERENCE_COLUMNS if row.get(name) is not None), None)
    if name is None:
        raise KeyError(f"it has none of the columns {', '.join(REFERENCE_COLUMNS)}; name another behind a colon")
    value = row.get(name)
    if value is None:
        raise KeyError(f"it has no column `{name}`")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"column `{name}` holds {type(value).__name__}, not text or a number")
    return str(value)


def _reference_number(row: Mapping[str, Any], column: str | None) -> str:
    text = reference_text(row, column)
    if last_number(text) is None:
        raise ValueError(f"its reference {text[:60]!r} holds no number")
    return text


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _regex(name: RewardName) -> RuleReward:
    return RuleReward(matches(name.arguments["pattern"]), name=name.written)


def _exact_match(name: RewardName) -> RuleReward:
    column = name.arguments["column"]
    return RuleReward(
        lambda completion, row: same_text(completion, reference_text(row, column)),
        name=name.written,
        reads=lambda row: reference_text(row, column),
    )


def _numeric_match(name: RewardName) -> RuleReward:
    column = name.arguments["column"]
    return RuleReward(
        lambda completion, row: same_number(completion, reference_text(row, column)),
        name=name.written,
        reads=lambda row: _reference_number(row, column),
    )


def _json_valid(name: RewardName) -> RuleReward:
    return RuleReward(lambda completion, row: is_json(completion), name=name.written)


def _length(name: RewardName) -> RuleReward:
    least, most = name.arguments["least"], name.arguments["most"]
    return RuleReward(lambda completion, row: length_within(completion, least, most), name=name.written)


def _repetition(name: RewardName) -> RuleReward:
    size = name.arguments["size"]
    return RuleReward(lambda completion, row: -repeated_share(completion, size), name=name.written)


_MAKERS: Mapping[str, Callable[[RewardName], RuleReward]] = {
    "regex": _regex,
    "exact_match": _exact_match,
    "numeric_match": _numeric_match,
    "json_valid": _json_valid,
    "length": _length,
    "repetition": _repetition,
}
