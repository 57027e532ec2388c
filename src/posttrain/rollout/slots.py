"""The local decode engine: a fixed number of slots, in which sequences enter and leave one by one.

Each step is one forward over a packed row: one token for every live slot and, where slots are free, whole new prompts.
A prompt with G samples is prefilled once; its G first tokens are drawn from that one row of logits, and its keys and
values are copied to the slots of the samples that go on. Samples for which no slot is free wait with their first token
drawn; some slot still holds their prompt's keys and values when their turn comes, because waiting samples take freed
slots before any other prompt does. Live slots stay the first ones: the last moves into a freed place, which copies one
sequence per sequence finished, where gathering live slots would copy all of them at every step.

Memory follows the completions that there are, not the longest that there could be: the cache starts with room for a
short one behind the longest prompt and grows when a live sequence needs more.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import RunError, UserError
from posttrain.models import attention
from posttrain.models.logits import logits_of
from posttrain.models.modes import evaluating
from posttrain.models.quantize import is_quantized
from posttrain.models.work import StepCount
from posttrain.rollout import sampling
from posttrain.rollout.in_progress import Group, Sample
from posttrain.rollout.kv_cache import KVCache, StepPlan
from posttrain.rollout.protocol import Completion, Progress, Prompt, SamplingParams
from posttrain.rollout.static_step import CudaRecorder, Recorder, RecordingError, StaticStep

FIRST_ROOM = 128
"""Completion tokens that the cache has room for at first."""


@dataclass
class Counters:
    """Work done since the sampler was made.

    Attributes:
        prefill_tokens: prompt tokens that went through the model.
        decode_steps: forwards that carried at least one live slot.
        decode_tokens: completion tokens that went through the model.
        static_steps: those of ``decode_steps`` that ran on tensors which stay in place.
    """

    prefill_tokens: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0
    static_steps: int = 0


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
        with evaluating(self.model):
            return _Generation(self, prompts, params).run(progress)

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
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        longest = max(prompts, key=lambda prompt: len(prompt.input_ids))
        length = len(longest.input_ids)
        if getattr(config, "rope_parameters", None) is None and limit and length + params.max_new_tokens > limit:
            raise UserError(
                f"prompt {longest.index} has {length} tokens; with max_new_tokens {params.max_new_tokens} that is more "
                f"than the model's {limit} positions; lower max_new_tokens or cutoff_len"
            )


class _Generation:
    """The state of one ``generate`` call.

    ``live`` is the sequences of slots 0 .. len(live) - 1, None where one has just finished. ``holds[s]`` is the group
    whose prompt's keys and values lie at the start of slot s. ``executed`` is the slots that the last step carried and
    the tokens of each that it read, live or not.
    """

    def __init__(self, sampler: SlotSampler, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        self.sampler = sampler
        self.params = params
        self.device = sampler.model.get_input_embeddings().weight.device
        self.trunk = sampler.model.get_decoder()
        self.groups = [Group(prompt) for prompt in prompts]
        self.queue = deque(self.groups)
        self.total = sum(prompt.samples for prompt in prompts)
        self.done = 0
        self.slots = min(sampler.num_slots, self.total)
        longest = max(len(prompt.input_ids) for prompt in prompts)
        first = longest + min(params.max_new_tokens, FIRST_ROOM)
        is_static = sampler.is_static(self.device)
        scratch = self.slots if is_static else 0
        self.cache = KVCache(self.slots, first, limit=longest + params.max_new_tokens, scratch=scratch)
        if is_static and self.device.type == "cuda" and sampler.recorder is None:
            sampler.recorder = CudaRecorder(self.device)
        self.static = StaticStep(sampler.model, self.cache, sampler.recorder) if is_static else None
        self.live: list[Sample | None] = []
        self.holds: list[Group | None] = [None] * self.slots
        self.waiting: deque[Sample] = deque()
        self.stops = frozenset(params.stop_token_ids)
        self.count = StepCount.opened(sampler.model)
        self.executed = 0, 0

    def run(self, progress: Progress | None) -> list[Completion]:
        while self.done < self.total:
            before = self.done
            self._refill()
            self._step(self._admit())
            if progress is not None and self.done > before:
                progress(self.done, self.total)
        return [sequence.completion() for group in self.groups for sequence in group.sequences]

    def _refill(self) -> None:
        """Waiting samples take the freed slots; what is still free is closed from the end."""
        free = [slot for slot, sequence in enumerate(self.live) if sequence is None]
        if self.waiting:
            group = self.waiting[0].group  # all of them: no other prompt is admitted while samples wait
            free.sort(key=lambda slot: self.holds[slot] is not group)  # places that hold it already need no copy
            for slot in free[: len(self.waiting)]:
                self._place(self.waiting.popleft(), slot)
        while self.live and None in self.live:
            last = self.live.pop()
            if last is None:
                continue
            slot = self.live.index(None)
            self.cache.copy(len(self.live), slot, last.cached)
            self.live[slot], self.holds[slot] = last, last.group

    def _place(self, sequence: Sample, slot: int) -> None:
        """Put a sequence whose first token is drawn into a slot."""
        group = sequence.group
        if self.holds[slot] is not group:
            self.cache.copy(self.holds.index(group), slot, len(group.prompt.input_ids))
            self.holds[slot] = group
        if slot == len(self.live):
            self.live.append(sequence)
        else:
            self.live[slot] = sequence

    def _admit(self) -> list[Group]:
        """The next prompts, as many as free slots and the token budget allow."""
        admitted: list[Group] = []
        free, budget = self.slots - len(self.live), self.sampler.prefill_tokens
        while self.queue and free > 0:
            prompt = self.queue[0].prompt
            if admitted and len(prompt.input_ids) > budget:
                break
            free -= prompt.samples
            budget -= len(prompt.input_ids)
            admitted.append(self.queue.popleft())
        for group in admitted:
            self._start(group)
        return admitted

    def _start(self, group: Group) -> None:
        prompt, params = group.prompt, self.params
        for index in range(prompt.samples):
            numbers = []
            if params.do_sample:
                numbers = sampling.uniforms(
                    params.max_new_tokens,
                    seed=params.seed,
                    iteration=params.iteration,
                    prompt_index=prompt.index,
                    sample_index=index,
                )
            seen = None
            if params.repetition_penalty != 1.0:
                vocabulary = self.sampler.model.get_output_embeddings().weight.shape[0]
                seen = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
                seen[list(prompt.input_ids)] = True
            values: list[float] | None = None if self.sampler.value_head is None else []
            group.sequences.append(Sample(group, index, numbers, seen, values))

    def _step(self, admitted: list[Group]) -> None:
        """One forward: a token for every live slot, and the admitted prompts."""
        began = time.perf_counter()
        live = [sequence for sequence in self.live if sequence is not None]
        contexts = [sequence.cached + 1 for sequence in live]
        logits, values = self._forward(live, admitted)
        self._draw(logits, values, live + [sequence for group in admitted for sequence in group.sequences])
        for slot, sequence in enumerate(live):
            if self._finished(sequence):
                self.live[slot] = None
        hosts = len(live)
        self.live += [None] * len(admitted)
        for slot, group in enumerate(admitted, start=hosts):
            self.holds[slot] = group
        for slot, group in enumerate(admitted, start=hosts):
            going_on = [sequence for sequence in group.sequences if not self._finished(sequence)]
            for sequence in going_on:
                if self.live[slot] is None:
                    self._place(sequence, slot)
                elif len(self.live) < self.slots:
                    self._place(sequence, len(self.live))
                else:
                    self.waiting.append(sequence)
        if self.count is not None:
            prompts = [len(group.prompt.input_ids) for group in admitted]
            slots, keys = self.executed
            self.count.add(contexts, prompts, keys=keys, seconds=time.perf_counter() - began, slots=slots)

    def _forward(self, live: list[Sample], admitted: list[Group]) -> tuple[Tensor, Tensor | None]:
        """Logits [S, V] and values [S]: for every live slot, then for every sample of every admitted prompt."""
        positions = [sequence.cached for sequence in live]
        self.cache.reserve(max(positions, default=0) + 1)
        tokens = [sequence.token_ids[-1] for sequence in live]
        if not admitted and (found := self._static_answers(tokens, positions)) is not None:
            return found
        self.executed = len(live), max(positions, default=-1) + 1
        capacity, counters = self.cache.capacity, self.sampler.counters
        places = [slot * capacity + position for slot, position in enumerate(positions)]
        lengths = [position + 1 for position in positions]
        prompts = [group.prompt.input_ids for group in admitted]
        rows = list(range(len(live)))
        for slot, (ids, group) in enumerate(zip(prompts, admitted, strict=True), start=len(live)):
            tokens += ids
            positions += range(len(ids))
            places += range(slot * capacity, slot * capacity + len(ids))
            rows += [len(tokens) - 1] * group.prompt.samples
        plan = StepPlan(self.cache, self._tensor(places), lengths, [len(ids) for ids in prompts])
        out = self.trunk(
            input_ids=self._tensor(tokens)[None], position_ids=self._tensor(positions)[None], use_cache=False, plan=plan
        )
        if not self.cache.layers:
            raise UserError(
                f"{type(self.sampler.model).__name__} does not hand its attention to transformers' attention "
                "interface, so the local sampler cannot decode it"
            )
        counters.decode_tokens += len(live)
        counters.decode_steps += bool(live)
        counters.prefill_tokens += len(tokens) - len(live)
        hidden = out.last_hidden_state[0]
        if not admitted:
            return self._answers(hidden)
        heads = sorted(set(rows))  # samples of one prompt share its row of logits
        logits, values = self._answers(hidden[heads])
        if len(heads) == len(rows):
            return logits, values
        row_of = {row: index for index, row in enumerate(heads)}
        shared = [row_of[row] for row in rows]
        return logits[shared], None if values is None else values[shared]

    def _static_answers(self, tokens: list[int], positions: list[int]) -> tuple[Tensor, Tensor | None] | None:
        """What ``_forward`` says without new prompts, where a static step can say it."""
        if self.static is None:
            return None
        try:
            hidden, logits = self.static(tokens, positions)
        except RecordingError as error:
            warnings.warn(
                f"decoding goes on without CUDA graphs, one kernel at a time, as the step of "
                f"{type(self.sampler.model).__name__} cannot be recorded: {error}",
                stacklevel=2,
            )
            self.static, self.sampler.static = None, False
            return None
        self.executed = self.static.sizes
        counters, head = self.sampler.counters, self.sampler.value_head
        counters.decode_tokens += len(tokens)
        counters.decode_steps += 1
        counters.static_steps += 1
        return logits, None if head is None else head(hidden)

    def _answers(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the heads say of states [M, D]: logits [M, V], and values [M] where there is a value head."""
        head = self.sampler.value_head
        return logits_of(self.sampler.model, hidden), None if head is None else head(hidden)

    def _draw(self, logits: Tensor, values: Tensor | None, sequences: list[Sample]) -> None:
        """Append one token to each sequence."""
        if values is not None:
            for sequence, value in zip(sequences, values.tolist(), strict=True):
                if sequence.values is not None:
                    sequence.values.append(value)
        params = self.params
        numbers = seen = too_early = None
        if params.do_sample:
            numbers = torch.tensor([s.numbers[len(s.token_ids)] for s in sequences], device=self.device)
        if params.repetition_penalty != 1.0:
            seen = torch.stack([s.seen for s in sequences if s.seen is not None])
        early = [row for row, s in enumerate(sequences) if len(s.token_ids) < params.min_new_tokens]
        if early:
            too_early = self._tensor(early)
        drawn, logprobs = sampling.sample(logits, params, numbers=numbers, seen=seen, too_early=too_early)
        for sequence, token, logprob in zip(sequences, drawn.tolist(), logprobs.tolist(), strict=True):
            if math.isnan(logprob):
                raise RunError(
                    f"the model's logits are not numbers at token {len(sequence.token_ids)} of prompt "
                    f"{sequence.group.prompt.index}: its weights or its input are broken (a learning rate too high?)"
                )
            sequence.token_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.ended = token in self.stops
            if sequence.seen is not None:
                sequence.seen[token] = True
            self.done += self._finished(sequence)

    def _finished(self, sequence: Sample) -> bool:
        return sequence.ended or len(sequence.token_ids) == self.params.max_new_tokens

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)
