"""Rules about what `posttrain eval` measures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain.config.judge import is_url
from posttrain.config.judge_rules import judge_problems
from posttrain.config.run import RunConfig

FROM_FILES = ("sql", "generation", "match", "win_rate")
"""Tasks that can score predictions without a model."""

Finding = tuple[str, str]


def eval_problems(config: RunConfig) -> Iterator[Finding]:
    """What keeps an evaluation from working: a key, and a sentence about it."""
    task = config.evaluate.task
    yield from _predictions(config)
    if task == "match":
        yield from _match(config)
    if task == "win_rate":
        yield from _win_rate(config)
    if task == "frontier":
        yield from _frontier(config)
    if task == "lm_eval":
        yield from _lm_eval(config)


def eval_cautions(config: RunConfig) -> Iterator[str]:
    """What an evaluation does not do although a key seems to ask for it."""
    task, answers = config.evaluate.task, config.generation.num_return_sequences
    if answers > 1 and "num_return_sequences" in config.sources and not config.evaluate.predictions:
        written = config.sources["num_return_sequences"]
        if written != "default of the stage" and task in (*FROM_FILES, "frontier"):
            yield f"`num_return_sequences: {answers}` changes nothing: an evaluation draws one answer to each prompt"
    if task == "win_rate" and config.judge.judge and config.judge.judge_mode == "pointwise":
        yield "`judge_mode: pointwise` changes nothing: task win_rate always asks which of two answers is better"


def _predictions(config: RunConfig) -> Iterator[Finding]:
    settings = config.evaluate
    if not settings.predictions:
        return
    if settings.task not in FROM_FILES:
        yield (
            "predictions",
            f"`predictions` is for tasks {', '.join(FROM_FILES)}, which score text; task {settings.task} asks a model",
        )
    if settings.variants:
        yield "variants", "`variants` answer themselves, `predictions` have answered already; keep one of the two"


def _match(config: RunConfig) -> Iterator[Finding]:
    pattern = config.evaluate.match_pattern
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        yield "match_pattern", f"`match_pattern: {pattern}` is no regular expression: {error}"
        return
    if groups > 1:
        yield (
            "match_pattern",
            f"`match_pattern: {pattern}` has {groups} groups; the answer is what its one group holds, so write the "
            "others as (?:...)",
        )


def _win_rate(config: RunConfig) -> Iterator[Finding]:
    settings, judge = config.evaluate, config.judge.judge
    systems = settings.predictions or settings.variants
    if len(systems) < 2:
        yield (
            "predictions" if settings.predictions else "variants",
            "task win_rate compares at least two: `variants: base, sft=saves/sft`, or `predictions: a=a.jsonl, "
            "b=b.jsonl`",
        )
    scores = config.reward.reward_model or config.reward.reward_classifier or config.reward.reward_funcs
    if bool(judge) == bool(scores):
        yield (
            "judge",
            "task win_rate needs one who decides: `reward_model` (or reward_classifier, reward_funcs) scores answers, "
            f"`judge` compares them{'; keep one of the two' if judge else ''}",
        )
    elif judge and not is_url(judge):
        yield (
            "judge",
            f"`judge: {judge}` is no address of a server; the folder of a reward model belongs into `reward_model`",
        )
    elif judge:
        yield from judge_problems(config)


def _frontier(config: RunConfig) -> Iterator[Finding]:
    reward = config.reward
    if not config.evaluate.checkpoints_of:
        yield "checkpoints_of", "`checkpoints_of` is missing: task frontier needs the output_dir of an online run"
    if not (reward.reward_model or reward.reward_classifier or reward.reward_funcs):
        yield "reward_model", "`reward_model` is missing: task frontier needs what scores completions (or reward_funcs)"
    if config.evaluate.variants:
        yield "variants", "`variants` are the checkpoints in task frontier; remove the key"


def _lm_eval(config: RunConfig) -> Iterator[Finding]:
    if not config.evaluate.lm_eval_tasks:
        yield (
            "lm_eval_tasks",
            "`lm_eval_tasks` is missing: name tasks of lm-evaluation-harness, such as `lm_eval_tasks: "
            "hellaswag,arc_easy`",
        )
