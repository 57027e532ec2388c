"""Rows that say the same: twice in the training rows, or in training and held-out rows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from posttrain.diagnose.findings import Finding, first, share
from posttrain.diagnose.tables import Item

_WORDS = re.compile(r"\w+")
# An answer that so large a share of the rows gives teaches to give it always.
_COMMON_ANSWER = 0.05
_FEW = 20


@dataclass(frozen=True, slots=True)
class Keys:
    """An item reduced to what can be compared; hashes instead of texts, so that many rows fit into memory.

    Attributes:
        exact: of prompt, answers and label as they stand. near: of letters and digits alone, whatever their case.
        prompt, answers: the same for the parts of ``near``; the prompt is 0 where there is none.
    """

    exact: int
    near: int
    prompt: int
    answers: tuple[int, ...]


def keys_of(item: Item) -> Keys:
    """The keys of an item."""
    prompt = hash(normalised(item.prompt)) if item.prompt else 0
    answers = tuple(hash(normalised(answer)) for answer in item.answers)
    return Keys(
        exact=hash((item.prompt, item.answers, item.label)),
        near=hash((prompt, answers, item.label)),
        prompt=prompt,
        answers=answers,
    )


def normalised(text: str) -> str:
    """Letters and digits, with full-width forms and case made equal; a text without any stays as it is."""
    return "".join(_WORDS.findall(unicodedata.normalize("NFKC", text).casefold())) or text


def repeats(items: Sequence[Item], keys: Sequence[Keys]) -> Iterator[Finding]:
    """Rows that repeat an earlier one, exactly or nearly."""
    exact = _later([key.exact for key in keys])
    twice = set(exact)
    near = {i: j for i, j in _later([key.near for key in keys]).items() if i not in twice}
    for name, found, how in (("duplicates", exact, "repeat an earlier row"), ("near duplicates", near, _NEARLY)):
        if not found:
            yield Finding(level="ok", check=name, message="none", count=0)
            continue
        places = first(f"{items[i].where} = {_short(items[j].where, items[i].where)}" for i, j in found.items())
        yield Finding(
            level="warning",
            check=name,
            message=f"{share(len(found), len(items))} rows {how}",
            fix="Remove them, unless they are meant to count more",
            count=len(found),
            places=places,
        )


_NEARLY = "repeat an earlier one but for case, punctuation or blanks"


def contradictions(items: Sequence[Item], keys: Sequence[Keys]) -> Iterator[Finding]:
    """One answer called good and bad; a pair that stands there both ways round."""
    seen: dict[Hashable, int] = {}
    found = []
    for i, (item, key) in enumerate(zip(items, keys, strict=True)):
        if item.label is not None:
            mine: Hashable = (key.prompt, key.answers, item.label)
            other: Hashable = (key.prompt, key.answers, not item.label)
        elif len(item.answers) == 2:
            mine, other = (key.prompt, key.answers), (key.prompt, key.answers[::-1])
        else:
            continue
        if key.answers != key.answers[::-1] or item.label is not None:
            if other in seen:
                found.append((i, seen[other]))
            seen.setdefault(mine, i)
    if found:
        what = "answers are called good here and bad there" if items[found[0][0]].label is not None else _BOTH_WAYS
        yield Finding(
            level="warning",
            check="contradictions",
            message=f"{len(found)} {what}",
            fix="Keep one of the two judgements",
            count=len(found),
            places=first(f"{items[i].where} against {_short(items[j].where, items[i].where)}" for i, j in found),
        )


_BOTH_WAYS = "pairs stand there the other way round too"


def leaks(train: Sequence[Item], held_out: Sequence[Item], keys: Sequence[Keys], held: Sequence[Keys]) -> Finding:
    """Held-out rows that training has seen.

    Args:
        train, held_out: the rows. keys, held: theirs.
    """
    whole = {key.near: i for i, key in reversed(list(enumerate(keys)))}
    prompts = {key.prompt: i for i, key in reversed(list(enumerate(keys))) if key.prompt}
    same = {i: whole[key.near] for i, key in enumerate(held) if key.near in whole}
    asked = {i: prompts[key.prompt] for i, key in enumerate(held) if key.prompt in prompts}
    asked = {**same, **asked}
    if not asked:
        message = f"none of the {len(held_out)} held-out rows has a prompt that is trained on"
        return Finding(level="ok", check="leaks", message=message, count=0)
    found = same or asked
    places = first(f"{held_out[i].where} = {_short(train[j].where, held_out[i].where)}" for i, j in found.items())
    return Finding(
        level="warning",
        check="leaks",
        message=f"{share(len(asked), len(held_out))} held-out rows have a prompt that is trained on, {len(same)} of "
        "them with the same answer; evaluation will look better than it is",
        fix="Take these prompts out of one side; rows of one prompt belong on one side",
        count=len(asked),
        places=places,
        details={"same_prompt": len(asked), "same_prompt_and_answer": len(same), "held_out": len(held_out)},
    )


def common_answers(items: Sequence[Item], keys: Sequence[Keys]) -> Iterator[Finding]:
    """One answer to many different prompts."""
    of_prompts: dict[int, set[int]] = defaultdict(set)
    for key in keys:
        if key.prompt and key.answers:
            of_prompts[key.answers[0]].add(key.prompt)
    prompts = len({key.prompt for key in keys})
    counts = Counter({answer: len(asked) for answer, asked in of_prompts.items()})
    if not counts or prompts < _FEW:
        return
    answer, count = counts.most_common(1)[0]
    if count > _COMMON_ANSWER * prompts and count > 2 and 2 * len(counts) > _FEW:
        example = next(i for i, key in enumerate(keys) if key.answers and key.answers[0] == answer)
        text = items[example].answers[0]
        yield Finding(
            level="warning",
            check="common answer",
            message=f"{share(count, prompts)} different prompts have the answer {text[:40]!r}",
            fix="A model learns to give it always: thin these rows out, unless it is a class label",
            count=count,
            places=(items[example].where,),
        )


def _later(keys: Sequence[int]) -> dict[int, int]:
    """index -> index of the first with the same key, for all but the first."""
    seen: dict[int, int] = {}
    found = {}
    for i, key in enumerate(keys):
        if (earlier := seen.setdefault(key, i)) != i:
            found[i] = earlier
    return found


def _short(where: str, beside: str) -> str:
    """The place without its file where that is the same."""
    file, _, row = where.rpartition(", ")
    return row if beside.startswith(f"{file}, ") else where
