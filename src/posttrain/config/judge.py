"""Keys of the judge: a language model on a server, or a reward model, that says which answer is better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option

_SCALE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*-\s*(-?\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges answers, and how it is asked: `posttrain label`, and `reward_funcs: judge`."""

    judge: str | None = option(
        None,
        help="Base URL of a server with OpenAI's chat completions, such as `http://127.0.0.1:8000/v1`; for `posttrain "
        "label` also the folder of a reward model.",
        path=True,
    )
    judge_model: str | None = option(None, help="Name of the model that the server should ask; required with a URL.")
    judge_token_env: str | None = option(
        None, help="Name of the environment variable that holds the bearer token; the token itself is never stored."
    )
    judge_mode: Literal["pairwise", "pointwise"] = option(
        "pairwise",
        help="pairwise: which of two answers is better; pointwise: a number for each, as `reward_funcs: judge` always "
        "asks for.",
    )
    judge_language: Literal["en", "zh"] = option("en", help="Language of the built-in prompt.")
    judge_prompt: str | None = option(
        None,
        help="Text file with another prompt: `{prompt}`, `{answer_a}` and `{answer_b}`, pointwise `{prompt}`, "
        "`{answer}`, `{lowest}` and `{highest}` stand for what is judged.",
        path=True,
    )
    judge_scale: str = option("1-10", help="Lowest and highest number of a pointwise judge.")
    judge_swap: bool = option(
        True,
        help="Show each pair in both orders; a pair on which the two verdicts differ is dropped and counted.",
    )
    judge_min_margin: float = option(
        0.0, help="Scores that differ by no more than this are a tie, which is dropped and counted.", minimum=0
    )
    judge_max_pairs: int | None = option(
        None, help="Pairs of answers to one prompt that are compared; null is all of them.", minimum=1
    )
    judge_temperature: float | None = option(
        0.0, help="Temperature that the judge answers with; null leaves it to the server.", minimum=0
    )
    judge_max_tokens: int | None = option(
        1024, help="Longest answer of the judge in tokens; null leaves it to the server.", minimum=1
    )
    judge_concurrency: int = option(8, help="Requests that are under way at the same time.", minimum=1)
    judge_time_limit: float = option(120.0, help="Seconds that one request may take.", above=0)
    judge_retries: int = option(
        4,
        help="How often a request that failed is sent again, after growing pauses, and how often a judge that gave no "
        "verdict is asked again.",
        minimum=0,
    )


def is_url(judge: str) -> bool:
    """Whether the value of `judge` names a server rather than a folder."""
    return judge.lower().startswith(("http://", "https://"))


def scale(text: str) -> tuple[float, float]:
    """Lowest and highest number of a scale such as ``1-10``.

    Raises:
        ValueError: it is none, or the first number is not the lower one.
    """
    found = _SCALE.fullmatch(text)
    if found is None or not float(found[1]) < float(found[2]):
        raise ValueError(f"{text!r} is no scale")
    return float(found[1]), float(found[2])
