"""Bad questions about a passage, as hurried people and small models write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from posttrain.data.question_generation.subjects import Passage

Mistake = Callable[[Passage, str, str, Random], str]

_EMPTY = ("这段文字讲了什么？", "它是什么？", "文中提到了什么？", "这是哪里？", "为什么？")


def good_question(passage: Passage, rng: Random) -> str:
    """A question that the passage answers."""
    return rng.choice(passage.questions(rng.choice(passage.stated)))


def hasty_question(passage: Passage, rng: Random) -> str:
    """What somebody asks who wants to be done: nothing in particular, or without saying of whom."""
    if rng.random() < 0.4:
        return rng.choice(_EMPTY)
    return without_name(passage, good_question(passage, rng), "", rng)


def empty(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It asks for nothing in particular."""
    return rng.choice(_EMPTY)


def without_name(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It does not say of whom."""
    return question.replace(passage.subject, rng.choice(("它", passage.kind.called)))


def unstated(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """The passage does not answer it."""
    return rng.choice(passage.questions(rng.choice(passage.unstated)))


def of_another(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It is about another subject of the kind."""
    return question.replace(passage.subject, neighbour)


def misspelt(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """A character of the name is another one, or is missing."""
    name = passage.subject
    start, end = (1, len(name) - 1) if passage.kind.marks else (0, len(name))
    position = rng.randrange(start, end)
    other = rng.choice([c for c in passage.kind.syllables if c != name[position]])
    return question.replace(name, name[:position] + rng.choice(("", other)) + name[position + 1 :])


def cut_off(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It breaks off."""
    return question[: rng.randrange(max(2, len(question) // 3), len(question) - 1)]


def hollow(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It breaks off, and is closed as if it were whole."""
    return question[: rng.randrange(2, max(3, len(question) - 2))].rstrip("？") + "？"


def gapped(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """Some characters in its middle are missing."""
    start = rng.randrange(1, max(2, len(question) - 4))
    return question[:start] + question[start + rng.randint(1, 4) :].rstrip("？") + "？"


def stuttered(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """A part of it is said again."""
    start = rng.randrange(0, max(1, len(question) - 4))
    part = question[start : start + rng.randint(2, 5)].rstrip("？")
    return question[:start] + part * rng.randint(1, 2) + question[start:]


def asked_twice(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """Two questions in one."""
    return question + rng.choice(passage.questions(rng.choice(passage.stated)))


def statement(passage: Passage, question: str, neighbour: str, rng: Random) -> str:
    """It is a sentence of the passage, no question."""
    clauses = passage.text.rstrip("。").replace("。", "，").split("，")
    return rng.choice(clauses) + "。"


MISTAKES: Mapping[str, tuple[Mistake, int]] = {
    "empty": (empty, 2),
    "without_name": (without_name, 4),
    "unstated": (unstated, 12),
    "of_another": (of_another, 2),
    "misspelt": (misspelt, 3),
    "cut_off": (cut_off, 1),
    "hollow": (hollow, 5),
    "gapped": (gapped, 4),
    "stuttered": (stuttered, 2),
    "asked_twice": (asked_twice, 1),
    "statement": (statement, 1),
}
"""Name -> what makes it, and how often it is drawn."""


def bad_question(passage: Passage, question: str, neighbour: str, rng: Random) -> tuple[str, str]:
    """(mistake, question): another version of a good question, worse than it."""
    weights = [weight for _, weight in MISTAKES.values()]
    while True:
        name = rng.choices(list(MISTAKES), weights=weights)[0]
        found = MISTAKES[name][0](passage, question, neighbour, rng)
        if found not in passage.good_questions:
            return name, found
