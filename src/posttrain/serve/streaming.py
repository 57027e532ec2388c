"""One completion token by token, with the numbers and the arithmetic of the slot engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.models.logits import logits_of
from posttrain.rollout import SamplingParams, sampling
from posttrain.rollout.kv_cache import KVCache, StepPlan
from posttrain.rollout.slots import FIRST_ROOM


@torch.no_grad()
def _last_logits(model: Any, cache: KVCache, ids: Sequence[int], start: int) -> Tensor:
    """[1, V] after the last of ``ids``, which stand at ``start`` and behind; their keys and values are stored."""
    device = model.get_input_embeddings().weight.device
    positions = torch.arange(start, start + len(ids), device=device)
    lengths, prompts = ([start + 1], []) if start else ([], [len(ids)])
    plan = StepPlan(cache, positions, lengths, prompts)
    row = torch.tensor([list(ids)], device=device)
    out = model.get_decoder()(input_ids=row, position_ids=positions[None], use_cache=False, plan=plan)
    return logits_of(model, out.last_hidden_state[0, -1:])


def stream_tokens(model: Any, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
    """The tokens that ``SlotSampler`` would draw for prompt 0, sample 0, one at a time, the stop token included.

    Args:
        model: in evaluation mode, its attention ``posttrain.models.attention.NAME``.
        prompt: token ids, not empty.
        params: how to draw.
    """
    room = min(params.max_new_tokens, FIRST_ROOM)
    cache = KVCache(1, len(prompt) + room, limit=len(prompt) + params.max_new_tokens)
    numbers = sampling.uniforms(
        params.max_new_tokens, seed=params.seed, iteration=params.iteration, prompt_index=0, sample_index=0
    )
    logits = _last_logits(model, cache, prompt, 0)
    first_row = torch.zeros(1, dtype=torch.int64, device=logits.device)
    seen = None
    if params.repetition_penalty != 1.0:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, list(prompt)] = True
    for count, number in enumerate(numbers):
        drawn, _ = sampling.sample(
            logits,
            params,
            numbers=torch.tensor([number], device=logits.device) if params.do_sample else None,
            seen=seen,
            too_early=first_row if count < params.min_new_tokens else None,
        )
        token = int(drawn)
        yield token
        if token in params.stop_token_ids or count + 1 == params.max_new_tokens:
            return
        if seen is not None:
            seen[0, token] = True
        cache.reserve(len(prompt) + count + 1)
        logits = _last_logits(model, cache, [token], len(prompt) + count)
