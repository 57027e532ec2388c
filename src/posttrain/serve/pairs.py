"""Preference pairs from a model's own answers: what a judge calls right above what it calls wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.data.answers import as_rows
from posttrain.data.encode import EncodedPrompt

PAIRS = "preference_pairs.jsonl"
PAIRS_OF_ONE_PROMPT = 2

# (columns of the prompt's row, an answer, number of the row from 1) -> how much it is worth, 1 being right
Judge = Callable[[Mapping[str, Any], str, int], float]


def preference_pairs(
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[Sequence[str]],
    judge: Judge,
    reference: Callable[[Mapping[str, Any], int], str],
) -> list[dict[str, Any]]:
    """One row for each wrong answer, at most two for each prompt, in the order of the prompts.

    The better side is a right answer to the same prompt, the reference where the model gave none; so most pairs have
    two sides of the model's own, and differ by what is right rather than by who wrote it.

    Args:
        prompts: with the columns of their rows. answers: several texts for each.
        judge: says what an answer is worth. reference: the row's own answer, from its columns and number.

    Returns:
        Rows with ``prompt`` (a list of messages), ``chosen`` and ``rejected``, as stage rm reads them.
    """
    rows = []
    for number, (prompt, texts) in enumerate(zip(prompts, answers, strict=True), start=1):
        right: list[str] = []
        wrong: list[str] = []
        for text in dict.fromkeys(texts):
            (right if judge(prompt.extras, text, number) >= 1 else wrong).append(text)
        right = right or [reference(prompt.extras, number)]
        messages = as_rows(prompt.messages)
        for place, text in enumerate(wrong[:PAIRS_OF_ONE_PROMPT]):
            rows.append({"prompt": messages, "chosen": right[place % len(right)], "rejected": text})
    return rows
