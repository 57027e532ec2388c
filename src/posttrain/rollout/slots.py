"""The local sampler: completes prompts in a fixed number of slots, each finished sequence making room for the next.

Memory follows the completions that there are, not the longest that there could be: the cache starts with room for a
short one behind the longest prompt and grows when a live sequence needs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.models import attention
from posttrain.models.modes import evaluating
from posttrain.models.quantize import is_quantized
from posttrain.rollout.decoder import Counters, Decoder
from posttrain.rollout.kv_cache import KVCache
from posttrain.rollout.protocol import Completion, Progress, Prompt, SamplingParams
from posttrain.rollout.static_step import CudaRecorder, Recorder, StaticStep

FIRST_ROOM = 128
"""Completion tokens that the cache has room for at first."""


class SlotSampler:
    """Completes prompts with a transformers causal language model, in this process.

    Args:
        model: its attention implementation is ``posttrain.models.attention.NAME``; used as it is at each call, so a
            model in training samples from its current weights. Modules in training mode are put in evaluation mode
            for the call.
        num_slots: sequences decoded side by side.
        prefill_tokens: prompt tokens admitted in one step (one longer prompt is admitted alone).
        value_head: [M, D] hidden states -> [M] values of the states that tokens are drawn from; None records none.
        static: whether steps without new prompts run on tensors that stay in place, recorded as CUDA graphs on a GPU;
            None is on a GPU only. Quantised models never do.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_slots: int = 16,
        prefill_tokens: int = 2048,
        value_head: Callable[[Tensor], Tensor] | None = None,
        static: bool | None = None,
    ) -> None:
        if num_slots < 1 or prefill_tokens < 1:
            raise ValueError("num_slots and prefill_tokens must be at least 1")
        if model.get_decoder().config._attn_implementation != attention.NAME:
            raise ValueError(f'call model.set_attn_implementation("{attention.NAME}") before sampling from it')
        self.model = model
        self.num_slots = num_slots
        self.prefill_tokens = prefill_tokens
        self.value_head = value_head
        self.static = static
        self.recorder: Recorder | None = None
        self.counters = Counters()
        self.version = 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """Complete every prompt ``samples`` times; see ``Sampler.generate``.

        Raises:
            UserError: a prompt plus ``max_new_tokens`` does not fit into the model's learned positions.
            RunError: the model gave logits that are not numbers.
        """
        if not prompts:
            return []
        self._check_lengths(prompts, params)
        total = sum(prompt.samples for prompt in prompts)
        with evaluating(self.model):
            decoder = self._decoder_for(prompts, params)
            records = decoder.static is not None
            groups = [decoder.submit(prompt, params) for prompt in prompts]
            done = 0
            while decoder.busy:
                finished = decoder.step()
                done += finished
                if progress is not None and finished:
                    progress(done, total)
        self._remember(decoder, records=records)
        return [sequence.completion() for group in groups for sequence in group.sequences]

    @torch.no_grad()
    def generate_each(
        self, prompts: Sequence[Prompt], params: SamplingParams
    ) -> Iterator[tuple[int, list[Completion]]]:
        """As ``generate``, the completions of a prompt as soon as all of them are there, whichever prompt that is.

        Yields:
            (place of the prompt in ``prompts``, its completions).
        """
        if not prompts:
            return
        self._check_lengths(prompts, params)
        with evaluating(self.model):
            decoder = self._decoder_for(prompts, params)
            records = decoder.static is not None
            under_way = [(place, decoder.submit(prompt, params)) for place, prompt in enumerate(prompts)]
            while decoder.busy:
                if not decoder.step():
                    continue
                begun = list(takewhile(lambda pair: pair[1].sequences, under_way))
                done = [pair for pair in begun if all(sequence.finished for sequence in pair[1].sequences)]
                under_way = [pair for pair in begun if pair not in done] + under_way[len(begun) :]
                for place, group in done:
                    yield place, [sequence.completion() for sequence in group.sequences]
        self._remember(decoder, records=records)

    def _remember(self, decoder: Decoder, *, records: bool) -> None:
        """A step that could not be recorded is not tried again."""
        if records and decoder.static is None:
            self.static = False

    def _decoder_for(self, prompts: Sequence[Prompt], params: SamplingParams) -> Decoder:
        total = sum(prompt.samples for prompt in prompts)
        longest = max(len(prompt.input_ids) for prompt in prompts)
        room = longest + min(params.max_new_tokens, FIRST_ROOM)
        return self.decoder(min(self.num_slots, total), room, longest + params.max_new_tokens)

    def decoder(self, slots: int, room: int, limit: int, *, keeps: bool = False) -> Decoder:
        """An empty decoder of this model, for who brings prompts one at a time.

        Args:
            slots: sequences side by side.
            room: tokens of each, prompt and completion, that there is room for at first.
            limit: tokens of each that there will ever be.
            keeps: see ``Decoder``.
        """
        where = self.model.get_input_embeddings().weight.device
        is_static = self.is_static(where)
        cache = KVCache(slots, room, limit=limit, scratch=slots if is_static else 0)
        if is_static and where.type == "cuda" and self.recorder is None:
            self.recorder = CudaRecorder(where)
        return Decoder(
            self.model,
            cache,
            prefill_tokens=self.prefill_tokens,
            counters=self.counters,
            value_head=self.value_head,
            static=StaticStep(self.model, cache, self.recorder) if is_static else None,
            keeps=keeps,
        )

    def load_weights(self, weights: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Copy tensors into the model by name; None if it is the very model that is trained.

        Raises:
            KeyError: a name that the model does not have.
        """
        if weights:
            own = self.model.state_dict()
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        self.version = version

    def is_static(self, device: torch.device) -> bool:
        """Whether steps without new prompts run on tensors that stay in place."""
        wanted = device.type == "cuda" if self.static is None else self.static
        return wanted and not is_quantized(self.model)

    def _check_lengths(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        limit = learned_positions(self.model)
        longest = max(prompts, key=lambda prompt: len(prompt.input_ids))
        length = len(longest.input_ids)
        if limit is not None and length + params.max_new_tokens > limit:
            raise UserError(
                f"prompt {longest.index} has {length} tokens; with max_new_tokens {params.max_new_tokens} that is more "
                f"than the model's {limit} positions; lower max_new_tokens or cutoff_len"
            )


def learned_positions(model: Any) -> int | None:
    """How many tokens a model has positions for; None where they are computed, so that there is no end to them."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit and getattr(config, "rope_parameters", None) is None else None
