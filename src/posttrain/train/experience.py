"""Completions into a rollout table, and the table into shuffled minibatches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import EncodedPrompt
from posttrain.data.template import pad_token_id
from posttrain.rollout import Completion, Prompt, Sampler, SamplingParams
from posttrain.types import RolloutBatch


def collect(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    params: SamplingParams,
    *,
    group_size: int,
    first_index: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RolloutBatch:
    """Sample ``group_size`` completions of each prompt and lay them out as rows, a group's rows contiguous."""
    asked = [
        Prompt(input_ids=tuple(prompt.input_ids), index=index, samples=group_size)
        for index, prompt in enumerate(prompts, start=first_index)
    ]
    completions = sampler.generate(asked, params, progress)
    return laid_out(tokenizer, [(prompts[c.prompt_index - first_index], c) for c in completions])


def laid_out(tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[EncodedPrompt, Completion]]) -> RolloutBatch:
    """Prompts and their completions as a rollout table, in this order."""
    width = max(len(prompt.input_ids) + len(c.token_ids) for prompt, c in rows)
    input_ids = torch.full((len(rows), width), pad_token_id(tokenizer))
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    logprobs = torch.zeros(len(rows), width)
    values = torch.zeros(len(rows), width) if all(c.values is not None for _, c in rows) else None
    for b, (prompt, completion) in enumerate(rows):
        start = len(prompt.input_ids)
        end = start + len(completion.token_ids)
        input_ids[b, :end] = torch.tensor([*prompt.input_ids, *completion.token_ids])
        attention_mask[b, :end] = True
        loss_mask[b, start:end] = True
        logprobs[b, start:end] = torch.tensor(completion.logprobs)
        if values is not None and completion.values is not None:
            values[b, start:end] = torch.tensor(completion.values)
    return RolloutBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        logprobs=logprobs,
        values=values,
        ended=torch.tensor([c.ended for _, c in rows]),
        prompts=tuple(prompt.text for prompt, _ in rows),
        completions=tuple(str(tokenizer.decode(c.token_ids, skip_special_tokens=True)) for _, c in rows),
        extras=tuple(prompt.extras for prompt, _ in rows),
        messages=tuple(
            tuple({"role": message.role, "content": message.content} for message in prompt.messages)
            for prompt, _ in rows
        ),
    )


def telling(batch: RolloutBatch, group_size: int) -> RolloutBatch:
    """The groups whose rewards are not all the same."""
    rewards = batch.rewards if batch.rewards is not None else torch.zeros(len(batch))
    groups = rewards.reshape(-1, group_size)
    keeps = (groups.amax(dim=1) > groups.amin(dim=1)).repeat_interleave(group_size)
    return batch.rows(keeps.nonzero().squeeze(1))


def joined(batches: Sequence[RolloutBatch]) -> RolloutBatch:
    """One table of the rows of several, which have the same columns filled."""
    width = max(batch.input_ids.shape[1] for batch in batches)
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(RolloutBatch):
        parts = [getattr(batch, field.name) for batch in batches]
        if isinstance(parts[0], Mapping):
            columns[field.name] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        elif isinstance(parts[0], tuple):
            columns[field.name] = tuple(value for part in parts for value in part)
        elif parts[0] is not None and parts[0].dim() == 2:
            padded = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
            columns[field.name] = torch.cat(padded)
        elif parts[0] is not None:
            columns[field.name] = torch.cat(parts)
    return RolloutBatch(**columns)


def minibatches(
    batch: RolloutBatch, *, epochs: int, size: int, group_size: int, seed: int, iteration: int
) -> Iterator[RolloutBatch]:
    """Shuffled minibatches of ``size`` sequences, for several epochs.

    Completions of one prompt stay together: their prompt is then computed once. The order is a function of seed,
    iteration and epoch.
    """
    groups = [range(start, start + group_size) for start in range(0, len(batch), group_size)]
    for epoch in range(epochs):
        order = list(groups)
        random.Random(f"{seed}/{iteration}/{epoch}").shuffle(order)
        shuffled = [row for group in order for row in group]
        for start in range(0, len(shuffled), size):
            yield batch.rows(torch.tensor(shuffled[start : start + size], device=batch.input_ids.device))


def sequence_kl(batch: RolloutBatch) -> Tensor:
    """[B] Σ_t (logprobs - ref_logprobs) over the completion: the k1 estimate of each sequence's KL."""
    if batch.ref_logprobs is None:
        raise ValueError("ref_logprobs are not filled: consult the reference first")
    return ((batch.logprobs - batch.ref_logprobs) * batch.loss_mask).sum(dim=1)
