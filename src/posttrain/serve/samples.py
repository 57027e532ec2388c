"""Several answers to each prompt, sampled in pieces that outlive a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.answers import AnswersExample, distinct
from posttrain.data.datasets import encode_examples, read_examples
from posttrain.data.encode import EncodedPrompt, Report
from posttrain.data.formats import UnusableRowError
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.source import find_source
from posttrain.rollout import Prompt, Sampler, SamplingParams, SlotSampler
from posttrain.serve.fallback import LibrarySampler
from posttrain.serve.journal import Journal
from posttrain.serve.model import ChatModel

PIECE = 16
"""Prompts that are answered before the answers are written down."""


def sampled(
    config: RunConfig,
    path: Path,
    report: Report,
    *,
    notify: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> list[AnswersExample]:
    """``num_return_sequences`` answers to each prompt of the dataset, the same that ``posttrain generate`` draws.

    Args:
        config: names model, dataset and the way of drawing.
        path: the journal of answers; what stands there already is not drawn again.
        report: prompts that cannot be compared are counted there.

    Returns:
        Prompts with at least two different answers.

    Raises:
        UserError: bad configuration or data, or a journal of other prompts, another model or other settings.
    """
    if not config.model.model_name_or_path:
        raise UserError(
            "`model_name_or_path` is missing: the dataset holds prompts without answers to compare; name the model "
            "that should answer them"
        )
    if config.generation.num_return_sequences < 2:
        raise UserError(
            "`num_return_sequences` is 1, but a judge compares answers: set it to 2 or more, and sample them "
            "(do_sample: true)"
        )
    source = find_source(config)
    template = Template.configured(source.tokenizer, config.data)
    names = config.data.dataset or config.data.eval_dataset
    examples = read_examples(names, config.data, "ppo", report)
    prompts = encode_examples(examples, source.tokenizer, template, config.data, "ppo", report)
    settings = {
        "model_name_or_path": config.model.model_name_or_path,
        "adapters": [link.fingerprint for link in source.links],
        "prompts": _digest([prompt.input_ids for prompt in prompts]),
        "seed": config.train.seed,
        **dataclasses.asdict(config.generation),
    }
    with Journal(path, settings, start_over=config.train.overwrite_output_dir) as journal:
        answers = {int(record["row"]): list(record["answers"]) for record in journal.records}
        if len(answers) < len(prompts):
            _draw(config, prompts, answers, journal, notify=notify, progress=progress)
    return _examples(prompts, answers, report)


def _draw(
    config: RunConfig,
    prompts: Sequence[EncodedPrompt],
    answers: dict[int, list[str]],
    journal: Journal,
    *,
    notify: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> None:
    """Fill in the missing answers; pieces are always cut at the same places, so that a resumed one is the same."""
    if answers:
        notify(f"{len(answers)} of {len(prompts)} prompts are answered in {journal.path}")
    model = ChatModel(config, notify=notify)
    samples = config.generation.num_return_sequences
    sampler: Sampler = LibrarySampler(model.model)
    if model.is_packed:
        sampler = SlotSampler(model.model, num_slots=config.train.per_device_eval_batch_size)
    stop = model.template.stop_token_ids
    params = SamplingParams.configured(config.generation, stop_token_ids=stop, seed=config.train.seed)
    for start in range(0, len(prompts), PIECE):
        piece = range(start, min(start + PIECE, len(prompts)))
        if not all(row in answers for row in piece):
            asked = [Prompt(input_ids=tuple(prompts[row].input_ids), index=row, samples=samples) for row in piece]
            texts = [model.text_of(completion) for completion in sampler.generate(asked, params)]
            for place, row in enumerate(piece):
                if row not in answers:
                    answers[row] = texts[place * samples : (place + 1) * samples]
                    journal.add({"row": row, "answers": answers[row]})
        progress("sample answers", piece.stop, len(prompts))


def _examples(prompts: Sequence[EncodedPrompt], answers: dict[int, list[str]], report: Report) -> list[AnswersExample]:
    found = []
    for row, prompt in enumerate(prompts):
        try:
            found.append(AnswersExample(prompt=prompt.messages, answers=distinct(answers[row])))
        except UnusableRowError as unusable:
            report.drop(unusable.reason, f"prompt {row + 1}")
    report.kept = len(found)
    if not found:
        raise UserError(
            "the answers to each prompt are all the same, so there is nothing to compare; raise temperature, top_p or "
            "num_return_sequences"
        )
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()
