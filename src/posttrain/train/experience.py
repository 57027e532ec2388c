"""Completions into a rollout table, and the table into shuffled minibatches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

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
    progress: Callable[[int, int], None] | None = None,
) -> RolloutBatch:
    """Sample ``group_size`` completions of each prompt and lay them out as rows, a group's rows contiguous."""
    asked = [Prompt(input_ids=tuple(p.input_ids), index=i, samples=group_size) for i, p in enumerate(prompts)]
    completions = sampler.generate(asked, params, progress)
    return laid_out(tokenizer, [(prompts[c.prompt_index], c) for c in completions])


def laid_out(tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[EncodedPrompt, Completion]]) -> RolloutBatch:
    """Prompts and their completions as a rollout table, in this order."""
    width = max(len(prompt.input_ids) + len(c.token_ids) for prompt, c in rows)
    input_ids = torch.full((len(rows), width), pad_token_id(tokenizer))
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    logprobs = torch.zeros(len(rows), width)
    for b, (prompt, completion) in enumerate(rows):
        start = len(prompt.input_ids)
        end = start + len(completion.token_ids)
        input_ids[b, :end] = torch.tensor([*prompt.input_ids, *completion.token_ids])
        attention_mask[b, :end] = True
        loss_mask[b, start:end] = True
        logprobs[b, start:end] = torch.tensor(completion.logprobs)
    return RolloutBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        logprobs=logprobs,
        ended=torch.tensor([c.ended for _, c in rows]),
        prompts=tuple(prompt.text for prompt, _ in rows),
        completions=tuple(str(tokenizer.decode(c.token_ids, skip_special_tokens=True)) for _, c in rows),
        extras=tuple(prompt.extras for prompt, _ in rows),
        messages=tuple(
            tuple({"role": message.role, "content": message.content} for message in prompt.messages)
            for prompt, _ in rows
        ),
    )


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
