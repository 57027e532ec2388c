"""``posttrain label``: prompts or sampled answers into preference pairs, by a judge."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.judge import is_url
from posttrain.data.answers import AnswersExample, as_rows, read_answers
from posttrain.data.encode import Report
from posttrain.data.sources import resolve_dataset
from posttrain.errors import RunError, UserError
from posttrain.rewards.judge import Judge
from posttrain.serve.asking import Asking, Progress
from posttrain.serve.journal import Journal
from posttrain.serve.outcomes import Outcome, Verdicts, account, pairs_of, preference_rows, scored, voted
from posttrain.serve.output_file import as_lines, output_file, write_whole
from posttrain.serve.pairs import PAIRS
from posttrain.serve.samples import sampled
from posttrain.serve.scoring import reward_identity

RESULTS = "label_results.json"
SUFFIXES = {".jsonl": "one object per line"}


def label(
    config: RunConfig,
    *,
    notify: Callable[[str], None] = lambda sentence: None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Preference pairs of the rows of ``dataset`` (else ``eval_dataset``), as stages rm and dpo read them.

    Rows with several answers are judged as they are; to prompts without any the model of the configuration gives
    ``num_return_sequences`` first. Answers and verdicts are kept beside ``output_file``, in ``*.answers.jsonl`` and
    ``*.verdicts.jsonl``, each as soon as it is there: the same command goes on where a killed one was, and asks
    nothing twice. ``output_file`` is written at the end, whole, with the numbers in ``label_results.json`` beside it.

    Args:
        config: loaded with ``command="label"``.
        notify: receives sentences for the user.
        progress: told of what is going on: what, done, in all.

    Returns:
        What ``label_results.json`` holds.

    Raises:
        UserError: bad configuration, data or folders, or a judge that refuses every question.
        RunError: a server that gives no answers, no pair to write, or a file that cannot be written.
    """
    for sentence in config.warnings:
        notify(sentence)
    target = output_file(config, command="label", default=PAIRS, suffixes=SUFFIXES)
    verdicts_path, answers_path = (target.with_suffix(f".{kind}.jsonl") for kind in ("verdicts", "answers"))
    _check_free(config, target, verdicts_path)
    judge = Judge.configured(config) if is_url(str(config.judge.judge)) else None
    identity = _identity(config, judge)  # a folder that is no reward model is refused here
    names, report = config.data.dataset or config.data.eval_dataset, Report()
    examples = read_answers(names, config.data, report)
    if examples is None:
        examples = sampled(config, answers_path, report, notify=notify, progress=progress)
    notify(report.sentence())
    settings = {"rows": _digest(examples), **identity}
    began = time.perf_counter()
    with Journal(verdicts_path, settings, start_over=config.train.overwrite_output_dir) as journal:
        asking = Asking(config, examples, journal, notify=notify, progress=progress)
        outcomes, verdicts = _outcomes(config, asking, judge)
    if asking.refusals:
        notify(f"the server refused {len(asking.refusals)} questions, the first with {asking.refusals[0]}")
    rows = preference_rows(examples, outcomes, _name(config))
    results = {
        **account(examples, outcomes, verdicts),
        "label_refused": len(asking.refusals),
        "label_requests": judge.client.num_requests if judge else 0,
        "label_retries": judge.client.num_retries if judge else 0,
        "label_runtime": max(time.perf_counter() - began, 1e-9),
    }
    if rows:
        write_whole(target, as_lines(rows))
        notify(f"wrote {len(rows)} preference pairs to {target}")
    write_whole(target.with_name(RESULTS), json.dumps(results, indent=2) + "\n")
    if not rows:
        target.unlink(missing_ok=True)  # of an earlier start with other settings
        raise RunError(_no_pair(results, verdicts_path))
    return results


def _outcomes(config: RunConfig, asking: Asking, judge: Judge | None) -> tuple[list[Outcome], Verdicts]:
    """What the judge makes of every pair, in the order of the rows; and its verdicts, if it gave such."""
    settings, examples = config.judge, asking.examples
    if judge is not None and judge.prompt.mode == "pairwise":
        verdicts = asking.verdicts(judge)
        outcomes = [
            voted(row, pair, verdicts, swap=settings.judge_swap)
            for row, example in enumerate(examples)
            for pair in pairs_of(len(example.answers), settings.judge_max_pairs)
        ]
        return outcomes, verdicts
    scores = asking.ratings(judge) if judge is not None else asking.folder_ratings(str(settings.judge))
    margin, limit = settings.judge_min_margin, settings.judge_max_pairs
    found = [
        scored(row, len(example.answers), scores, min_margin=margin, limit=limit)
        for row, example in enumerate(examples)
    ]
    return [outcome for of_row in found for outcome in of_row], {}


def _check_free(config: RunConfig, target: Path, journal: Path) -> None:
    """Refuse to write over a dataset, or over a file that is not from here.

    Raises:
        UserError: the file is one of the datasets, or is there without the journal that it was written from.
    """
    for name in config.data.dataset or config.data.eval_dataset:
        path = resolve_dataset(name, config.data.dataset_dir).path
        if path is not None and path.resolve() == target.resolve():
            raise UserError(f"output_file: {target} is the dataset {name!r} itself; name another file")
    if target.exists() and not journal.exists() and not config.train.overwrite_output_dir:
        raise UserError(
            f"output_file: {target} is there already, without {journal.name} beside it, so it is not known what it "
            "holds; name another file, or write overwrite_output_dir: true"
        )


def _identity(config: RunConfig, judge: Judge | None) -> dict[str, Any]:
    """What verdicts depend on beside the rows, as plain JSON values."""
    settings, data = config.judge, config.data
    if judge is None:
        return {
            "judge": settings.judge,
            "judge_weights": reward_identity(str(settings.judge)),
            "cutoff_len": data.cutoff_len,
            "template": data.template,
            "default_system": data.default_system,
        }
    identity = {
        "judge": judge.client.url,
        "judge_model": settings.judge_model,
        "judge_mode": settings.judge_mode,
        "judge_prompt": hashlib.sha256(judge.prompt.text.encode("utf-8")).hexdigest(),
        "judge_temperature": settings.judge_temperature,
        "judge_max_tokens": settings.judge_max_tokens,
        "default_system": data.default_system,
    }
    return identity if settings.judge_mode == "pairwise" else {**identity, "judge_scale": settings.judge_scale}


def _name(config: RunConfig) -> str:
    """What the rows call the judge."""
    return config.judge.judge_model or str(config.judge.judge)


def _digest(examples: Sequence[AnswersExample]) -> str:
    content = [[as_rows(example.prompt), example.answers] for example in examples]
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _no_pair(results: dict[str, Any], journal: Path) -> str:
    parts = [
        (results["label_disagreed"], "on which the verdicts of the two orders differ"),
        (results["label_ties"], "tied"),
        (results["label_undecided"], "without a verdict"),
    ]
    said = ", ".join(f"{count} {what}" for count, what in parts if count)
    return (
        f"judge: no preference pair in {results['label_num_compared']} comparisons ({said}); {journal} holds what the "
        "judge said. Another judge_model or judge_prompt, or answers that differ more, may help"
    )
