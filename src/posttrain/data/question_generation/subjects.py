"""Kinds of subjects, and passages about one subject of a kind: some of its attributes, stated in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any

import yaml

PLACES = ("东", "西", "南", "北", "云", "江", "海", "安", "平", "宁", "石", "金", "青", "白", "龙", "河")
PLACE_ENDS = ("省", "市", "县", "镇", "山")
SURNAMES = "赵钱孙李周吴郑王冯陈卫蒋沈韩杨"
GIVEN = "文明志远书华国庆子安思德光雨晨建"
FILLERS = ("当地人对{c}十分熟悉", "近年来{c}受到许多关注", "不少报道提到过{c}", "许多人曾为{c}写过文章")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that can be said of a subject, and asked.

    Attributes:
        states: clauses with ``{v}``. asks: questions with ``{n}``.
    """

    name: str
    value: Any
    states: tuple[str, ...]
    asks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of subjects.

    Attributes:
        called: how a subject is called in later clauses. opens: first clauses, with ``{n}`` and ``{place}``.
        marks: an opening and a closing sign around names, or nothing.
    """

    name: str
    syllables: str
    ends: tuple[str, ...]
    called: str
    opens: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    surnames: str = ""
    marks: str = ""

    def subject(self, rng: Random) -> str:
        """A made-up name."""
        if self.surnames:
            return rng.choice(self.surnames) + rng.choice(self.syllables) + rng.choice(self.ends)
        middle = "".join(rng.sample(self.syllables, rng.choice((2, 2, 3))))
        name = middle + rng.choice(self.ends)
        return f"{self.marks[0]}{name}{self.marks[1]}" if self.marks else name

    def tail(self, name: str) -> str:
        """The end of a name with what stands before it: what a longer name that holds it has, too."""
        stem = name.strip(self.marks)
        end = max((end for end in self.ends if stem.endswith(end)), key=len)
        return stem[-2 - len(end) :]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text about one subject.

    Attributes:
        stated: names of the attributes that the text states, in its order.
    """

    kind: Kind
    subject: str
    text: str
    stated: tuple[str, ...]

    def questions(self, attribute: str) -> list[str]:
        """All ways to ask for an attribute of the subject."""
        return [ask.format(n=self.subject) for ask in self.kind.attributes[attribute].asks]

    @property
    def good_questions(self) -> frozenset[str]:
        """All questions that the text answers."""
        return frozenset(question for attribute in self.stated for question in self.questions(attribute))

    @property
    def unstated(self) -> tuple[str, ...]:
        """Attributes of its kind that the text does not state."""
        return tuple(name for name in self.kind.attributes if name not in self.stated)


@cache
def kinds() -> Mapping[str, Kind]:
    """All kinds of the package, by name."""
    text = resources.files(__package__).joinpath("subjects.yaml").read_text(encoding="utf-8")
    return {name: _kind(name, entry) for name, entry in yaml.safe_load(text).items()}


def draw_passage(kind: Kind, subject: str, neighbour: str, rng: Random) -> Passage:
    """A passage: an opening, two to four attributes, now and then a remark or another subject of the kind."""
    stated = rng.sample(list(kind.attributes), rng.choice((2, 3, 3, 4)))
    clauses = [_stated(kind.attributes[name], rng) for name in stated]
    if rng.random() < 0.4:
        clauses.insert(rng.randrange(len(clauses) + 1), rng.choice(FILLERS).format(c=kind.called))
    if rng.random() < 0.3:
        clauses.insert(rng.randrange(1, len(clauses) + 1), f"常与{neighbour}相比较")
    text = rng.choice(kind.opens).format(n=subject, place=place(rng))
    for clause in clauses:
        if rng.random() < 0.4:
            text += f"，{clause}"
        elif kind.called in clause:
            text += f"。{clause}"
        else:
            text += f"。{subject if rng.random() < 0.9 else kind.called}{clause}"
    return Passage(kind=kind, subject=subject, text=f"{text}。", stated=tuple(stated))


def place(rng: Random) -> str:
    """A made-up place."""
    return "".join(rng.sample(PLACES, 2)) + rng.choice(PLACE_ENDS)


def person(rng: Random) -> str:
    """A made-up person."""
    return rng.choice(SURNAMES) + "".join(rng.sample(GIVEN, 2))


def _stated(attribute: Attribute, rng: Random) -> str:
    return rng.choice(attribute.states).format(v=_value(attribute.value, rng))


def _value(spec: Any, rng: Random) -> str:
    if spec == "place":
        return place(rng)
    if spec == "person":
        return person(rng)
    if "of" in spec:
        return str(rng.choice(spec["of"]))
    return str(rng.randrange(spec["low"], spec["high"] + 1, spec.get("step", 1)))


def _kind(name: str, entry: Mapping[str, Any]) -> Kind:
    attributes = {
        key: Attribute(name=key, value=value["value"], states=tuple(value["states"]), asks=tuple(value["asks"]))
        for key, value in entry["attributes"].items()
    }
    more = {key: entry[key] for key in ("surnames", "marks") if key in entry}
    return Kind(
        name=name,
        syllables=entry["syllables"],
        ends=tuple(entry["ends"]),
        called=entry["called"],
        opens=tuple(entry["opens"]),
        attributes=attributes,
        **more,
    )
