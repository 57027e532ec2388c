"""What single rows, and all of them together, look like when something went wrong while they were made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from posttrain.diagnose.findings import Finding, first, share
from posttrain.diagnose.repeats import normalised
from posttrain.diagnose.tables import Item

# What pandas, JSON writers and spreadsheets put where nothing was.
_NOTHING = ("nan", "none", "null", "n/a", "undefined")
_MARKS = re.compile(r"<\|[a-z_0-9]{2,}\|>|\[INST\]|\[/INST\]|<start_of_turn>|<end_of_turn>")
# UTF-8 that was read as Latin-1 or Windows-1252, and characters that a decoder gave up on.
_MOJIBAKE = re.compile("\ufffd|Ã[\u0080-\u00bf©¤¶¼¡¨ª«´]|â€[œ™\u009d˜¦\u0093\u0094]|Â[\u00a0°»«]|锟斤拷")
_UNEVEN = 5
_LENGTH_BIAS = 0.8
_FEW_PAIRS = 20


def oddities(items: Sequence[Item], marks: Sequence[str] = ()) -> Iterator[Finding]:
    """Findings about single rows.

    Args:
        items: usable rows. marks: the special tokens of the model, where one is known.
    """
    special = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))) if marks else _MARKS
    checks: tuple[tuple[str, Callable[[Item], bool], str, str], ...] = (
        (
            "empty answers",
            lambda item: any(not answer.strip() for answer in item.answers),
            "have an answer without text",
            "Fill or remove them; a model learns from them to say nothing",
        ),
        (
            "placeholder answers",
            lambda item: any(len(a) < 12 and a.strip().lower() in _NOTHING for a in item.answers),
            "have an answer such as 'nan' or 'None', which a missing value became",
            "Remove them where they are no real answers",
        ),
        (
            "answers that repeat the prompt",
            lambda item: len(item.prompt) > 8 and item.prompt.strip() in (a.strip() for a in item.answers),
            "answer with the prompt itself",
            "Look whether a column is mapped twice",
        ),
        (
            "special tokens in the text",
            lambda item: special.search(item.prompt) is not None or any(special.search(a) for a in item.answers),
            "hold text that reads as a special token, which the chat template adds by itself",
            "Remove the marks from the text; an end-of-turn token in the middle teaches to stop there",
        ),
        (
            "broken characters",
            lambda item: _MOJIBAKE.search(item.prompt) is not None or any(_MOJIBAKE.search(a) for a in item.answers),
            "hold characters that a wrong encoding made",
            "Read the source as UTF-8 again",
        ),
    )
    for name, concerns, message, fix in checks:
        found = [item.where for item in items if concerns(item)]
        if found:
            text = f"{share(len(found), len(items))} rows {message}"
            yield Finding(level="warning", check=name, message=text, fix=fix, count=len(found), places=first(found))
        elif name == "empty answers" and any(item.answers for item in items):
            yield Finding(level="ok", check=name, message="none", count=0)


def label_balance(items: Sequence[Item]) -> Iterator[Finding]:
    """How many judged answers are good, and how many bad."""
    judged = [item for item in items if item.label is not None]
    if not judged:
        return
    good = sum(bool(item.label) for item in judged)
    bad = len(judged) - good
    details = {"good": good, "bad": bad}
    if not good or not bad:
        only = "good (true)" if good else "bad (false)"
        yield Finding(
            level="error",
            check="label balance",
            message=f"all {len(judged)} answers are {only}; stage kto learns from both kinds",
            fix="Add rows of the other kind; good answers alone train with stage: sft",
            details=details,
        )
        return
    message = f"{share(good, len(judged))} good, {bad} bad"
    if max(good, bad) > _UNEVEN * min(good, bad):
        rare, often = ("kto_chosen_weight", bad / good) if good < bad else ("kto_rejected_weight", good / bad)
        yield Finding(
            level="warning",
            check="label balance",
            message=message,
            fix=f"Set {rare}: {often:.1f}, or so, to let both kinds weigh the same",
            details=details,
        )
    else:
        yield Finding(level="ok", check="label balance", message=message, details=details)


def pair_oddities(items: Sequence[Item]) -> Iterator[Finding]:
    """Sides that hardly differ, margins the wrong way round, and length that gives the better side away."""
    pairs = [item for item in items if len(item.answers) > 1]
    if not pairs:
        return
    alike = [item.where for item in pairs if _alike(item)]
    if alike:
        yield Finding(
            level="warning",
            check="sides alike",
            message=f"{share(len(alike), len(pairs))} pairs differ in case, punctuation or blanks alone",
            fix="Remove them, unless that is what is to be learned",
            count=len(alike),
            places=first(alike),
        )
    negative = [item.where for item in pairs if (getattr(item.example, "margin", None) or 0) < 0]
    if negative:
        yield Finding(
            level="warning",
            check="margins",
            message=f"{share(len(negative), len(pairs))} pairs have a margin below 0: rejected is to win there",
            fix="Swap the sides, or give the margin without its sign",
            count=len(negative),
            places=first(negative),
        )
    yield _length_bias(pairs)


def _alike(item: Item) -> bool:
    best, worst = item.answers[0], item.answers[-1]
    # most sides differ in length by more than that, and normalising is slow
    return abs(len(best) - len(worst)) < 40 and normalised(best) == normalised(worst)


def _length_bias(pairs: Sequence[Item]) -> Finding:
    longer = sum(len(item.answers[0]) > len(item.answers[-1]) for item in pairs)
    shorter = sum(len(item.answers[0]) < len(item.answers[-1]) for item in pairs)
    total = max(longer + shorter, 1)
    details = {"chosen_longer": longer, "rejected_longer": shorter, "pairs": len(pairs)}
    message = f"chosen is the longer side in {share(longer, len(pairs))} pairs, the shorter one in {shorter}"
    if len(pairs) >= _FEW_PAIRS and max(longer, shorter) / total > _LENGTH_BIAS:
        better = "longer" if longer > shorter else "shorter"
        return Finding(
            level="warning",
            check="length bias",
            message=f"{message}: length alone tells the sides apart",
            fix=f"A reward model learns that {better} is better: add pairs with the {better} side rejected",
            details=details,
        )
    return Finding(level="ok", check="length bias", message=message, details=details)
