"""Completions by transformers' own ``generate``, for a model whose trunk cannot run packed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.rollout import Completion, Progress, Prompt, SamplingParams


class LibrarySampler:
    """The ``Sampler`` protocol over ``model.generate``: one prompt at a time, no log-probabilities."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """See ``Sampler.generate``; log-probabilities are NaN, since nobody trains on these."""
        completions: list[Completion] = []
        total = sum(prompt.samples for prompt in prompts)
        for prompt in prompts:
            completions += self._complete(prompt, params)
            if progress is not None:
                progress(len(completions), total)
        return completions

    def generate_each(
        self, prompts: Sequence[Prompt], params: SamplingParams
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(Place of a prompt, its completions), one prompt after the other."""
        for place, prompt in enumerate(prompts):
            yield place, self._complete(prompt, params)

    def load_weights(self, weights: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Nothing to do: the model is used as it is."""

    def _complete(self, prompt: Prompt, params: SamplingParams) -> list[Completion]:
        ids = torch.tensor([prompt.input_ids], device=self.model.device)
        options: dict[str, Any] = {
            "max_new_tokens": params.max_new_tokens,
            "do_sample": params.do_sample,
            "repetition_penalty": params.repetition_penalty,
            "eos_token_id": list(params.stop_token_ids),
            "pad_token_id": params.stop_token_ids[0],
            # greedily drawn samples are all the same one
            "num_return_sequences": prompt.samples if params.do_sample else 1,
        }
        if params.min_new_tokens:
            options["min_new_tokens"] = params.min_new_tokens
        if params.do_sample:
            options |= {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
            options |= {"min_p": params.min_p} if params.min_p else {}
        name = f"{params.seed}/{params.iteration}/{prompt.index}"
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(zlib.crc32(name.encode()))
            rows = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        drawn = rows[:, ids.shape[1] :].tolist()
        return [
            _completion(drawn[sample if params.do_sample else 0], prompt, sample, params)
            for sample in range(prompt.samples)
        ]


def _completion(token_ids: list[int], prompt: Prompt, sample: int, params: SamplingParams) -> Completion:
    """The row up to its first stop token; what follows is padding."""
    end = next((i for i, token in enumerate(token_ids) if token in params.stop_token_ids), None)
    kept = token_ids if end is None else token_ids[: end + 1]
    return Completion(
        token_ids=kept,
        logprobs=[float("nan")] * len(kept),
        ended=end is not None,
        prompt_index=prompt.index,
        sample_index=sample,
    )
