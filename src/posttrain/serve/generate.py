"""``posttrain generate``: completions of a dataset in one file; what is done outlives a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.answers import as_rows
from posttrain.data.datasets import encode_examples, read_examples
from posttrain.data.encode import EncodedPrompt, Report
from posttrain.errors import UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.rewards.sql.columns import reference_sql
from posttrain.serve.journal import Journal
from posttrain.serve.model import ChatModel, Outfit
from posttrain.serve.output_file import as_lines, output_file, write_whole
from posttrain.serve.pairs import PAIRS, preference_pairs

PREDICTIONS = "generated_predictions.jsonl"
RESULTS = "predict_results.json"
PARTIAL = ".partial.jsonl"
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
    ``preference_pairs.jsonl``. Each file is whole or absent. Until then answers are kept in ``*.partial.jsonl``, each
    row's as soon as it is there, and the same command goes on where a killed one was.

    Args:
        config: loaded with ``command="generate"``.
        notify: receives sentences for the user.
        progress: told of what is going on: what, completions done, completions in all.

    Returns:
        What ``predict_results.json`` holds.

    Raises:
        UserError: bad configuration, data or folders, or answers of other settings that a killed command left.
        RunError: the file cannot be written.
    """
    target = output_file(config, command="generate", default=PREDICTIONS, suffixes=SUFFIXES)
    outfit = Outfit.configured(config, config.model.adapter_name_or_path)
    prompts = _read_prompts(config, outfit, notify)
    judge = SqlExecutionReward.configured(config) if config.predict.preference_judge else None
    can_pair = _judged(prompts, judge, notify) if judge is not None else ()
    kept = [_kept(prompt, config.predict.keep_columns, row) for row, prompt in enumerate(prompts, start=1)]
    model = ChatModel(config, notify=notify)
    partial = target.with_suffix(PARTIAL)
    settings = _settings(config, outfit, model, prompts)
    with Journal(partial, settings, start_over=config.train.overwrite_output_dir) as journal:
        answers = _answers(config, model, prompts, journal, notify=notify, progress=progress)
    texts = [answer["predict"] for answer in answers]
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
    results = _results(answers)
    write_whole(target, _serialised(rows, as_list=target.suffix == ".json"))
    notify(f"wrote {len(rows)} rows to {target}")
    if judge is not None:
        pairs = _pairs([prompts[place] for place in can_pair], [texts[place] for place in can_pair], judge)
        results["predict_pairs"] = len(pairs)
        write_whole(target.with_name(PAIRS), _serialised(pairs, as_list=False))
        notify(f"wrote {len(pairs)} preference pairs to {target.with_name(PAIRS)}")
    write_whole(target.with_name(RESULTS), json.dumps(results, indent=2) + "\n")
    partial.unlink(missing_ok=True)
    return results


def _settings(config: RunConfig, outfit: Outfit, model: ChatModel, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """All that an answer depends on."""
    return {
        "model_name_or_path": config.model.model_name_or_path,
        "weights": model.mark,
        "adapters": [link.fingerprint for link in outfit.source.links],
        "prompts": hashlib.sha256(json.dumps([prompt.input_ids for prompt in prompts]).encode("ascii")).hexdigest(),
        "seed": config.train.seed,
        **dataclasses.asdict(config.generation),
    }


def _answers(
    config: RunConfig,
    model: ChatModel,
    prompts: Sequence[EncodedPrompt],
    journal: Journal,
    *,
    notify: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """The record of each prompt, in their order; what the journal lacks is drawn and added to it.

    A record holds ``row``, the texts ``predict``, how many ``tokens`` they have, how many of them ``ended`` by
    themselves, and the ``seconds`` that drawing had taken by then, with those of earlier starts.
    """
    found = {int(record["row"]): record for record in journal.records}
    if found:
        notify(f"{len(found)} of {len(prompts)} rows are answered in {journal.path}; the others follow")
    samples = config.generation.num_return_sequences
    before = max((record["seconds"] for record in found.values()), default=0.0)
    missing = {row: prompt.input_ids for row, prompt in enumerate(prompts) if row not in found}
    began = time.perf_counter()
    for row, completions in model.complete_each(missing, num_slots=config.train.per_device_eval_batch_size):
        found[row] = {
            "row": row,
            "predict": [model.text_of(completion) for completion in completions],
            "tokens": sum(len(completion.token_ids) for completion in completions),
            "ended": sum(completion.ended for completion in completions),
            "seconds": before + time.perf_counter() - began,
        }
        journal.add(found[row])
        progress("generate", len(found) * samples, len(prompts) * samples)
    return [found[row] for row in range(len(prompts))]


def _results(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of ``predict_results.json``."""
    num_answers = sum(len(answer["predict"]) for answer in answers)
    num_tokens = sum(answer["tokens"] for answer in answers)
    seconds = max(1e-9, *(answer["seconds"] for answer in answers))
    return {
        "predict_num_rows": len(answers),
        "predict_runtime": seconds,
        "predict_seconds_per_row": seconds / len(answers),
        "predict_samples_per_second": num_answers / seconds,
        "predict_tokens": num_tokens,
        "predict_tokens_per_second": num_tokens / seconds,
        "predict_mean_length": num_tokens / num_answers,
        "predict_ended_share": sum(answer["ended"] for answer in answers) / num_answers,
    }


def _read_prompts(config: RunConfig, outfit: Outfit, notify: Callable[[str], None]) -> list[EncodedPrompt]:
    names = config.data.dataset or config.data.eval_dataset
    if not names:
        raise UserError(
            "`dataset` is missing: generate needs rows to complete; name an entry of dataset_info.json or a data file"
        )
    report = Report()
    examples = read_examples(names, config.data, "ppo", report)
    tokenizer = outfit.source.tokenizer
    prompts: list[EncodedPrompt] = encode_examples(examples, tokenizer, outfit.template, config.data, "ppo", report)
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


def _judged(
    prompts: Sequence[EncodedPrompt], judge: SqlExecutionReward, notify: Callable[[str], None]
) -> Sequence[int]:
    """The places of the prompts that answers can be judged to; says which ones cannot.

    Raises:
        UserError: a row has no database or no reference, or no reference runs.
    """
    failing = judge.failing([prompt.extras for prompt in prompts])
    for number, failed in failing.items():
        notify(f"row {number} makes no pair: its reference SQL does not run on {failed.db}: {failed.reason}")
    return [place for place in range(len(prompts)) if place + 1 not in failing]


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
