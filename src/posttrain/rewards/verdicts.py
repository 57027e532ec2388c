"""What a judge is asked, and what counts as an answer: prompts with places to fill, verdicts read strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from posttrain.data.formats import Message
from posttrain.errors import UserError

Mode = Literal["pairwise", "pointwise"]
Language = Literal["en", "zh"]
Verdict = Literal["A", "B", "tie"]

PLACES: dict[Mode, tuple[str, ...]] = {
    "pairwise": ("prompt", "answer_a", "answer_b"),
    "pointwise": ("prompt", "answer", "lowest", "highest"),
}
_NEEDED: dict[Mode, tuple[str, ...]] = {**PLACES, "pointwise": ("prompt", "answer")}
_PLACE = re.compile(r"\{(\w+)\}")
_REMINDERS: dict[tuple[Mode, Language], str] = {
    ("pairwise", "en"): "Your last answer held no verdict. Write one line and nothing else: `Verdict: A`, `Verdict: B` "
    "or `Verdict: tie`.",
    ("pairwise", "zh"): "你上次的回答没有给出结论。请只写一行：`结论：A`、`结论：B` 或 `结论：平局`。",
    ("pointwise", "en"): "Your last answer held no score. Write one line and nothing else: `Score: ` and a number from "
    "{lowest} to {highest}.",
    ("pointwise", "zh"): "你上次的回答没有给出分数。请只写一行：`评分：` 加上 {lowest} 到 {highest} 之间的数。",
}
_SPEAKERS: dict[Language, dict[str, str]] = {
    "en": {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"},
    "zh": {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"},
}

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_DECORATION = " \t\r*_`#<>~\"'“”「」。.!！,，"
_STATED = re.compile(r"(?:(?:final|my|最终)\s*)?(?:verdict|结论|判断|裁决)\s*[:：]\s*(.*)", re.IGNORECASE)
_SCORED = re.compile(r"(?:(?:final|my|最终)\s*)?(?:score|rating|评分|得分|分数|打分)\s*[:：]\s*(.*)", re.IGNORECASE)
_CHOICE = re.compile(r"\[?\[?(?:(?:answer|回答|答案)\s*)?(a|b|tie|平局|平手)\]?\]?", re.IGNORECASE)
_NUMBER = re.compile(r"\[?\[?([+-]?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?\s*分?\]?\]?")


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """The text a judge is sent, with places in braces.

    Attributes:
        mode: what it asks for. language: of the reminder and of the speakers' names.
        text: as written.
    """

    mode: Mode
    language: Language
    text: str

    def filled(self, **parts: str) -> str:
        """The text with its places filled; what is put in is never taken for a place itself."""
        return _fill(self.text, parts)

    def reminded(self, **parts: str) -> str:
        """The same for a judge that gave no verdict the time before."""
        return f"{self.filled(**parts)}\n\n{_fill(_REMINDERS[self.mode, self.language], parts)}"


def judge_prompt(mode: Mode, language: Language, path: str | None = None) -> JudgePrompt:
    """The built-in prompt, or that of a file.

    Raises:
        UserError: the file cannot be read, or lacks a place for what is judged.
    """
    if path is None:
        file = resources.files("posttrain.rewards") / "judge_texts" / f"{mode}.{language}.md"
        return JudgePrompt(mode=mode, language=language, text=file.read_text(encoding="utf-8"))
    place = Path(path).expanduser()
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge_prompt: {place} cannot be read as UTF-8 text ({error})") from None
    found = set(_PLACE.findall(text))
    missing = [name for name in _NEEDED[mode] if name not in found]
    others: dict[Mode, Mode] = {"pairwise": "pointwise", "pointwise": "pairwise"}
    if missing:
        other = others[mode]
        fits = all(name in found for name in _NEEDED[other])
        hint = f"; it is a prompt for `judge_mode: {other}`" if fits else ""
        raise UserError(
            f"judge_prompt: {place} does not say where {{{missing[0]}}} goes; a {mode} prompt needs "
            f"{', '.join(f'{{{name}}}' for name in _NEEDED[mode])}{hint}"
        )
    return JudgePrompt(mode=mode, language=language, text=text)


def transcript(messages: Sequence[Message], language: Language = "en") -> str:
    """A chat as a judge reads it: a single user message as it is, several under the names of who speaks."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    names = _SPEAKERS[language]
    return "\n\n".join(f"[{names[message.role]}]\n{message.content}" for message in messages)


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The chat with the system message that chats without one are given."""
    if system is None or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def pairwise_verdict(text: str) -> Verdict | None:
    """What a pairwise judge decided; None where the answer is not one clear verdict.

    The last line must be a verdict, bare (``A``, ``tie``, ``[[B]]``) or named (``Verdict: A``, ``结论：平局``); named
    verdicts above it must not contradict it. Thoughts between ``<think>`` tags do not count.
    """
    lines = _lines(text)
    if not lines:
        return None
    stated = [_choice(found[1]) for line in lines if (found := _STATED.fullmatch(line))]
    last = _choice(found[1]) if (found := _STATED.fullmatch(lines[-1])) else _choice(lines[-1])
    return last if last is not None and all(verdict == last for verdict in stated) else None


def pointwise_score(text: str, lowest: float, highest: float) -> float | None:
    """The number that a pointwise judge gave; None where the answer is not one clear number of the scale.

    The last line must be a number, bare (``7``, ``7/10``, ``[[7]]``) or named (``Score: 7``, ``评分：7``); named
    numbers above it must not contradict it.
    """
    lines = _lines(text)
    if not lines:
        return None
    stated = [_score(found[1], lowest, highest) for line in lines if (found := _SCORED.fullmatch(line))]
    value = found[1] if (found := _SCORED.fullmatch(lines[-1])) else lines[-1]
    last = _score(value, lowest, highest)
    return last if last is not None and all(score == last for score in stated) else None


def _lines(text: str) -> list[str]:
    """Lines that say something, without marks of Markdown around them."""
    stripped = (line.strip(_DECORATION) for line in _THOUGHT.sub("", text).splitlines())
    return [line for line in stripped if line]


def _choice(value: str) -> Verdict | None:
    found = _CHOICE.fullmatch(value.strip(_DECORATION))
    if found is None:
        return None
    words: dict[str, Verdict] = {"a": "A", "b": "B"}
    return words.get(found[1].lower(), "tie")


def _score(value: str, lowest: float, highest: float) -> float | None:
    found = _NUMBER.fullmatch(value.strip(_DECORATION))
    if found is None or (found[2] is not None and float(found[2]) != highest):
        return None
    score = float(found[1])
    return score if lowest <= score <= highest else None


def _fill(text: str, parts: dict[str, str]) -> str:
    return _PLACE.sub(lambda place: parts.get(place[1], place[0]), text)
