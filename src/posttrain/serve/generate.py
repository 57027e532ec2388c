"""``posttrain generate``: completions of a dataset in one file, and how long they took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.answers import as_rows
from posttrain.data.datasets import encode_examples, read_examples
from posttrain.data.encode import EncodedPrompt, Report
from posttrain.errors import UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql.columns import reference_sql
from posttrain.rollout import Completion
from posttrain.serve.model import ChatModel
from posttrain.serve.output_file import as_lines, output_file, write_whole
from posttrain.serve.pairs import PAIRS, preference_pairs

PREDICTIONS = "generated_predictions.jsonl"
RESULTS = "predict_results.json"
SUFFIXES = {".jsonl": "one object per line", ".json": "one list"}


def generate(
    config: RunConfig,
    *,
    notify: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Complete every row of ``dataset`` (else ``eval_dataset``), prompts rendered as PPO renders them.

    ``output_file`` gets one object per row, with ``prompt`` and its ``messages``, ``predict`` (a list where
    ``num_return_sequences`` is more than 1), ``label`` (the row's own answer, or null) and ``keep_columns``; the
    numbers go into ``predict_results.json`` beside it, and with ``preference_judge`` pairs into
    ``preference_pairs.jsonl``. Each file is whole or absent.

    Args:
        config: loaded with ``command="generate"``.
        notify: receives sentences for the user.
        progress: told of what is going on: what, completions done, completions in all.

    Returns:
        What ``predict_results.json`` holds.

    Raises:
        UserError: bad configuration, data or folders.
        RunError: the file cannot be written.
    """
    target = output_file(config, command="generate", default=PREDICTIONS, suffixes=SUFFIXES)
    model = ChatModel(config, notify=notify)
    prompts = _read_prompts(config, model, notify)
    judge = SqlExecutionReward.configured(config) if config.predict.preference_judge else None
    if judge is not None:
        judge.check(prompt.extras for prompt in prompts)
    kept = [_kept(prompt, config.predict.keep_columns, row) for row, prompt in enumerate(prompts, start=1)]
    began = time.perf_counter()
    completions = model.complete(
        [prompt.input_ids for prompt in prompts],
        num_slots=config.train.per_device_eval_batch_size,
        progress=lambda done, total: progress("generate", done, total),
    )
    seconds = max(time.perf_counter() - began, 1e-9)
    texts = [[model.text_of(completion) for completion in drawn] for drawn in completions]
    rows = [
        {
            "prompt": p.text,
            "messages": as_rows(p.messages),
            "predict": said[0] if len(said) == 1 else said,
            "label": p.extras.get("reference"),
            **columns,
        }
        for p, said, columns in zip(prompts, texts, kept, strict=True)
    ]
    results = _results(completions, seconds)
    write_whole(target, _serialised(rows, as_list=target.suffix == ".json"))
    notify(f"wrote {len(rows)} rows to {target}")
    if judge is not None:
        pairs = _pairs(prompts, texts, judge)
        results["predict_pairs"] = len(pairs)
        write_whole(target.with_name(PAIRS), _serialised(pairs, as_list=False))
        notify(f"wrote {len(pairs)} preference pairs to {target.with_name(PAIRS)}")
    write_whole(target.with_name(RESULTS), json.dumps(results, indent=2) + "\n")
    return results


def _results(completions: Sequence[Sequence[Completion]], seconds: float) -> dict[str, Any]:
    """The numbers of ``predict_results.json``."""
    every = [completion for drawn in completions for completion in drawn]
    num_tokens = sum(len(completion.token_ids) for completion in every)
    return {
        "predict_num_rows": len(completions),
        "predict_runtime": seconds,
        "predict_seconds_per_row": seconds / len(completions),
        "predict_samples_per_second": len(every) / seconds,
        "predict_tokens": num_tokens,
        "predict_tokens_per_second": num_tokens / seconds,
        "predict_mean_length": num_tokens / len(every),
        "predict_ended_share": sum(completion.ended for completion in every) / len(every),
    }


def _read_prompts(config: RunConfig, model: ChatModel, notify: Callable[[str], None]) -> list[EncodedPrompt]:
    names = config.data.dataset or config.data.eval_dataset
    if not names:
        raise UserError(
            "`dataset` is missing: generate needs rows to complete; name an entry of dataset_info.json or a data file"
        )
    report = Report()
    examples = read_examples(names, config.data, "ppo", report)
    prompts: list[EncodedPrompt] = encode_examples(
        examples, model.tokenizer, model.template, config.data, "ppo", report
    )
    notify(report.sentence())
    return prompts


def _kept(prompt: EncodedPrompt, columns: Sequence[str], row: int) -> dict[str, Any]:
    missing = [name for name in columns if name not in prompt.extras]
    if missing:
        raise UserError(
            f"keep_columns: row {row} has no column {missing[0]!r} beside its prompt (it has: "
            f"{', '.join(sorted(prompt.extras)) or 'none'})"
        )
    return {name: prompt.extras[name] for name in columns}


def _pairs(
    prompts: Sequence[EncodedPrompt], texts: Sequence[Sequence[str]], judge: SqlExecutionReward
) -> list[dict[str, Any]]:
    """Preference pairs by the judge that the configuration names.

    Raises:
        UserError: no wrong answer was found, so that there is nothing to prefer.
    """
    pairs = preference_pairs(prompts, texts, judge.worth, reference_sql)
    if not pairs:
        raise UserError(
            f"preference_judge: all answers to the {len(prompts)} prompts are right, so no pair can be made of them; "
            "give harder prompts, or raise temperature and num_return_sequences"
        )
    return pairs


def _serialised(rows: Sequence[dict[str, Any]], *, as_list: bool) -> str:
    if as_list:
        return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    return as_lines(rows)
