"""Completions of held-out prompts by every variant, and what the reward model and the reference say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from posttrain.config import RunConfig
from posttrain.data.batches import collate
from posttrain.data.encode import EncodedPrompt
from posttrain.data.template import EncodedRow, Template, pad_token_id
from posttrain.errors import UserError
from posttrain.evaluate.wardrobe import Outfit, Wardrobe
from posttrain.models.forward import is_packed
from posttrain.rollout import Completion, Prompt, SamplingParams, SlotSampler
from posttrain.types import Batch

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What one variant answered, one entry per prompt.

    Attributes:
        texts: completions, special tokens removed. lengths: in tokens, the end-of-turn token included.
        ended: whether they stopped by themselves.
        rewards: of prompt and completion; None without a reward model.
        kls: Σ_t log π − log π_ref over the completion; None without a reference.
    """

    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    ended: tuple[bool, ...]
    rewards: tuple[float, ...] | None = None
    kls: tuple[float, ...] | None = None


def complete(
    wardrobe: Wardrobe,
    prompts: Sequence[EncodedPrompt],
    params: SamplingParams,
    *,
    num_slots: int,
    progress: Progress,
) -> dict[str, Completed]:
    """Variant -> its completions, scored by the wardrobe's reward model and against each variant's reference.

    Args:
        wardrobe: the variants. prompts: encoded.
        params: how to draw; every variant gets the same random numbers.
        num_slots: sequences decoded side by side; changes no result.
        progress: told of what is going on: what, done, in all.

    Raises:
        UserError: the backbone cannot run packed, which sampling needs.
    """
    if not is_packed(wardrobe.backbone):
        raise UserError(
            f"{type(wardrobe.backbone).__name__} cannot run with packed attention, which sampling needs; tasks "
            "perplexity, loss and reward do evaluate it."
        )
    sampler = SlotSampler(wardrobe.backbone, num_slots=num_slots)
    asked = [Prompt(input_ids=tuple(prompt.input_ids), index=i) for i, prompt in enumerate(prompts)]
    found = {}
    for name, outfit in wardrobe.variants.items():
        progress(f"generate {name}", 0, len(asked))
        with wardrobe.wearing(outfit.wears):
            drawn = sampler.generate(asked, params, partial(progress, f"generate {name}"))
        progress(f"score {name}", 0, 0)
        found[name] = _completed(wardrobe, outfit, prompts, drawn, recorded=params.temperature == 1)
    return found


def sampling_params(config: RunConfig, template: Template) -> SamplingParams:
    """How an evaluation draws completions: greedy unless ``do_sample`` is set."""
    generation = config.generation
    params = SamplingParams.configured(generation, stop_token_ids=template.stop_token_ids, seed=config.train.seed)
    return params if generation.do_sample else replace(params, temperature=1.0)


def decoding_of(params: SamplingParams) -> dict[str, Any]:
    """What the results say of how completions were drawn."""
    drawn = ("temperature", "top_p", "top_k", "min_p", "seed") if params.do_sample else ()
    names = ("do_sample", *drawn, "repetition_penalty", "max_new_tokens", "min_new_tokens")
    return {name: getattr(params, name) for name in names}


def _completed(
    wardrobe: Wardrobe,
    outfit: Outfit,
    prompts: Sequence[EncodedPrompt],
    drawn: Sequence[Completion],
    *,
    recorded: bool,
) -> Completed:
    """recorded: whether the sampler's log-probabilities are the model's own, at temperature 1."""
    batch = _batch(prompts, drawn, pad_token_id(wardrobe.tokenizer))
    rewards, kls = None, None
    if wardrobe.reward is not None:
        rewards = tuple(wardrobe.scores(wardrobe.reward, batch).tolist())
    if outfit.reference is not None:
        reference = wardrobe.logprobs(outfit.reference, batch).double().sum(dim=1)
        if recorded:
            own = torch.tensor([sum(c.logprobs) for c in drawn], dtype=torch.float64)
        else:
            own = wardrobe.logprobs(outfit.wears, batch).double().sum(dim=1)
        kls = tuple((own.to(reference.device) - reference).tolist())
    return Completed(
        texts=tuple(str(wardrobe.tokenizer.decode(c.token_ids, skip_special_tokens=True)) for c in drawn),
        lengths=tuple(len(c.token_ids) for c in drawn),
        ended=tuple(c.ended for c in drawn),
        rewards=rewards,
        kls=kls,
    )


def _batch(prompts: Sequence[EncodedPrompt], drawn: Sequence[Completion], pad_id: int) -> Batch:
    """Prompt and completion of each row; the completion is what counts."""
    rows = []
    for completion in drawn:
        prompt = list(prompts[completion.prompt_index].input_ids)
        mask = [False] * len(prompt) + [True] * len(completion.token_ids)
        rows.append(EncodedRow(input_ids=prompt + list(completion.token_ids), loss_mask=mask))
    return collate(rows, pad_id)
