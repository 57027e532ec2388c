"""Slots in which sequences are decoded side by side: prompts arrive at any time, sequences enter and leave one by one.

Each step is one forward over a packed row: one token for every live slot and, where slots are free, whole new prompts.
A prompt with G samples is prefilled once; its G first tokens are drawn from that one row of logits, and its keys and
values are copied to the slots of the samples that go on. Samples for which no slot is free wait with their first token
drawn; some slot still holds their prompt's keys and values when their turn comes, because waiting samples take freed
slots before any other prompt does. A prompt too long for one step, where that is asked for, enters in parts through the
last slot, before any other. Live slots stay the first ones: the last moves into a freed place, which copies one
sequence per sequence finished, where gathering live slots would copy all of them at every step.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import RunError, UserError
from posttrain.models.logits import logits_of
from posttrain.models.work import StepCount
from posttrain.rollout import sampling
from posttrain.rollout.in_progress import Entry, Group, Sample, Watcher
from posttrain.rollout.kv_cache import KVCache, StepPlan
from posttrain.rollout.prefixes import Prefixes
from posttrain.rollout.protocol import Prompt, SamplingParams
from posttrain.rollout.static_step import RecordingError, StaticStep


@dataclass
class Counters:
    """Work done since they were made.

    Attributes:
        prefill_tokens: prompt tokens that went through the model.
        decode_steps: forwards that carried at least one live slot.
        decode_tokens: completion tokens that went through the model.
        static_steps: those of ``decode_steps`` that ran on tensors which stay in place.
        reused_tokens: prompt tokens whose keys and values were there already.
    """

    prefill_tokens: int = 0
    decode_steps: int = 0
    decode_tokens: int = 0
    static_steps: int = 0
    reused_tokens: int = 0


class Decoder:
    """Sequences of one model in the slots of one cache.

    Who steps it holds the model in evaluation mode and gradients off. A sequence's tokens depend on its own prompt,
    parameters and random numbers alone (its logits, up to rounding), whenever it arrives and whatever is beside it.

    Attributes:
        cache: keys and values. static: decode steps on tensors that stay in place; None where there are none, or none
            any more because a step could not be recorded.
        live: the sequences of slots 0 .. len(live) - 1, None where one has just finished.
        queue: prompts that have not begun. waiting: samples whose first token is drawn and that have no slot yet.
        holds: slot -> the group whose prompt's keys and values lie at its start.
        counters: work done.
        executed: the slots that the last step carried, live or not, and the tokens of each that it read.
    """

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        *,
        prefill_tokens: int,
        counters: Counters,
        value_head: Callable[[Tensor], Tensor] | None = None,
        static: StaticStep | None = None,
        keeps: bool = False,
    ) -> None:
        """Take an empty cache.

        Args:
            model, prefill_tokens, counters, value_head: as ``SlotSampler`` has them.
            cache: empty. static: of that cache.
            keeps: prompts longer than ``prefill_tokens`` enter in parts, and none computes a beginning that lies in
                a slot already, of prompts and completions that are over too. Changes no completion but by rounding.
        """
        self.model = model
        self.cache = cache
        self.static = static
        self.live: list[Sample | None] = []
        self.queue: deque[Group] = deque()
        self.waiting: deque[Sample] = deque()
        self.holds: list[Group | None] = [None] * cache.slots
        self.executed = 0, 0
        self._prefixes = Prefixes(cache.slots) if keeps else None
        self._entered = 0  # tokens of the first prompt of the queue that lie in the last slot
        self._prefill_tokens = prefill_tokens
        self.counters = counters
        self._value_head = value_head
        self._device = model.get_input_embeddings().weight.device
        self._trunk = model.get_decoder()
        self._count = StepCount.opened(model)

    @property
    def busy(self) -> bool:
        """Whether any sequence has tokens to come."""
        return bool(self.queue or self.waiting or self.num_live)

    @property
    def num_live(self) -> int:
        """Slots with a sequence in them."""
        return sum(sequence is not None for sequence in self.live)

    def submit(self, prompt: Prompt, params: SamplingParams, watch: Watcher | None = None) -> Group:
        """Let a prompt wait for its turn; its completions gather in the group that is returned.

        Args:
            prompt: with ``max_new_tokens`` more it fits into the cache.
            params: how to draw, for this prompt alone.
            watch: see ``Watcher``.
        """
        group = Group(prompt, params, watch)
        self.queue.append(group)
        return group

    def cancel(self, group: Group) -> None:
        """Forget a prompt and its completions, begun or not; their slots are free for the next step."""
        if group in self.queue:
            self._entered = 0 if self.queue[0] is group else self._entered
            self.queue.remove(group)
        self.waiting = deque(sequence for sequence in self.waiting if sequence.group is not group)
        for slot, sequence in enumerate(self.live):
            if sequence is not None and sequence.group is group:
                self._leave(slot, sequence)

    def step(self) -> int:
        """One forward: a token for every live slot, and prompts for the free ones.

        Returns:
            How many sequences it finished.

        Raises:
            RunError: the model gave logits that are not numbers.
        """
        self._refill()
        admitted = self._admit()
        began = time.perf_counter()
        live = [sequence for sequence in self.live if sequence is not None]
        if not live and not admitted:
            return 0
        contexts = [sequence.cached + 1 for sequence in live]
        logits, values = self._forward(live, admitted)
        stepped = live + [sequence for entry in admitted for sequence in entry.group.sequences]
        self._draw(logits, values, stepped)
        for slot, sequence in enumerate(live):
            if sequence.finished:
                self._leave(slot, sequence)
        self._seat(admitted)
        if self._count is not None:
            prompts = [entry.stop - entry.start for entry in admitted]
            slots, keys = self.executed
            self._count.add(contexts, prompts, keys=keys, seconds=time.perf_counter() - began, slots=slots)
        return sum(sequence.finished for sequence in stepped)

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
            self._lies(slot, last.group.prompt.input_ids)

    def _leave(self, slot: int, sequence: Sample) -> None:
        """Free a slot; what lies in it stays there until something else is written."""
        self.live[slot] = None
        self._lies(slot, sequence.cached_tokens if self._prefixes is not None else ())

    def _lies(self, slot: int, tokens: Sequence[int]) -> None:
        if self._prefixes is not None:
            self._prefixes.lies(slot, tokens)

    def _place(self, sequence: Sample, slot: int) -> None:
        """Put a sequence whose first token is drawn into a slot."""
        group = sequence.group
        if self.holds[slot] is not group:
            self.cache.copy(self.holds.index(group), slot, len(group.prompt.input_ids))
            self.holds[slot] = group
            self._lies(slot, group.prompt.input_ids)
        if slot == len(self.live):
            self.live.append(sequence)
        else:
            self.live[slot] = sequence

    def _admit(self) -> list[Entry]:
        """The next prompts, as many as free slots and the token budget allow."""
        admitted: list[Entry] = []
        free, budget = self.cache.slots - len(self.live), self._prefill_tokens
        while self.queue and free > 0:
            group = self.queue[0]
            entry = self._entry(group, len(self.live) + len(admitted), budget, is_first=not admitted)
            if entry is None:
                break
            admitted.append(entry)
            self._entered = 0 if entry.is_last else entry.stop
            if not entry.is_last:
                break
            free -= group.prompt.samples
            budget -= entry.stop - entry.start
            self.queue.popleft()
            self._start(group)
        return admitted

    def _entry(self, group: Group, slot: int, budget: int, *, is_first: bool) -> Entry | None:
        """What of a prompt enters in this step, and what lies before it brought to its slot; None is nothing yet."""
        ids, last = group.prompt.input_ids, self.cache.slots - 1
        source, start = last, self._entered
        if not start and self._prefixes is not None:
            source, start = self._prefixes.longest(ids)
        stop = len(ids)
        if stop - start > budget:
            if not is_first:
                return None
            if self._prefixes is not None:
                slot, stop = last, start + budget
        if start and source != slot:  # else what lies in the slot does so until the step is made
            self.cache.copy(source, slot, start)
            self._lies(slot, ids[:start])
        if not self._entered:
            self.counters.reused_tokens += start
        return Entry(group, slot, start, stop)

    def _start(self, group: Group) -> None:
        prompt, params = group.prompt, group.params
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
                vocabulary = self.model.get_output_embeddings().weight.shape[0]
                seen = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
                seen[list(prompt.input_ids)] = True
            values: list[float] | None = None if self._value_head is None else []
            group.sequences.append(Sample(group, index, numbers, seen, values))

    def _seat(self, admitted: list[Entry]) -> None:
        """Give the samples of new prompts, their first token drawn, the slots that are free; the others wait."""
        complete = [entry for entry in admitted if entry.is_last]
        self.live += [None] * len(complete)
        for entry in admitted:
            self._lies(entry.slot, entry.group.prompt.input_ids[: entry.stop])
            self.holds[entry.slot] = entry.group if entry.is_last else None
        for entry in complete:
            for sequence in entry.group.sequences:
                if sequence.finished:
                    continue
                if self.live[entry.slot] is None:
                    self._place(sequence, entry.slot)
                elif len(self.live) < self.cache.slots:
                    self._place(sequence, len(self.live))
                else:
                    self.waiting.append(sequence)

    def _forward(self, live: list[Sample], admitted: list[Entry]) -> tuple[Tensor, Tensor | None]:
        """Logits [S, V] and values [S]: for every live slot, then for every sample of every admitted prompt."""
        positions = [sequence.cached for sequence in live]
        self.cache.reserve(max([position + 1 for position in positions] + [entry.stop for entry in admitted]))
        tokens = [sequence.token_ids[-1] for sequence in live]
        if not admitted and (found := self._static_answers(tokens, positions)) is not None:
            return found
        self.executed = len(live), max(positions, default=-1) + 1
        capacity, counters = self.cache.capacity, self.counters
        places = [slot * capacity + position for slot, position in enumerate(positions)]
        lengths = [position + 1 for position in positions]
        rows = list(range(len(live)))
        for entry in admitted:
            tokens += entry.group.prompt.input_ids[entry.start : entry.stop]
            positions += range(entry.start, entry.stop)
            places += range(entry.slot * capacity + entry.start, entry.slot * capacity + entry.stop)
            rows += [len(tokens) - 1] * (entry.group.prompt.samples if entry.is_last else 0)
        prompts = [entry.stop - entry.start for entry in admitted]
        behind = {number: (entry.slot, entry.start) for number, entry in enumerate(admitted) if entry.start}
        plan = StepPlan(self.cache, self._tensor(places), lengths, prompts, behind)
        out = self._trunk(
            input_ids=self._tensor(tokens)[None], position_ids=self._tensor(positions)[None], use_cache=False, plan=plan
        )
        if not self.cache.layers:
            raise UserError(
                f"{type(self.model).__name__} does not hand its attention to transformers' attention "
                "interface, so the local sampler cannot decode it"
            )
        counters.decode_tokens += len(live)
        counters.decode_steps += bool(live)
        counters.prefill_tokens += len(tokens) - len(live)
        hidden = out.last_hidden_state[0]
        if not admitted:
            return self._answers(hidden)
        if not rows:
            return hidden[:0], None
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
                f"{type(self.model).__name__} cannot be recorded: {error}",
                stacklevel=2,
            )
            self.static = None
            return None
        self.executed = self.static.sizes
        counters, head = self.counters, self._value_head
        counters.decode_tokens += len(tokens)
        counters.decode_steps += 1
        counters.static_steps += 1
        return logits, None if head is None else head(hidden)

    def _answers(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the heads say of states [M, D]: logits [M, V], and values [M] where there is a value head."""
        return logits_of(self.model, hidden), None if self._value_head is None else self._value_head(hidden)

    def _draw(self, logits: Tensor, values: Tensor | None, sequences: list[Sample]) -> None:
        """Append one token to each sequence; those that are drawn alike are drawn together."""
        if values is not None:
            for sequence, value in zip(sequences, values.tolist(), strict=True):
                if sequence.values is not None:
                    sequence.values.append(value)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for row, sequence in enumerate(sequences):
            alike.setdefault(sequence.group.drawing, []).append(row)
        for rows in alike.values():
            part = logits if len(rows) == len(sequences) else logits[self._tensor(rows)]
            self._draw_alike(part, [sequences[row] for row in rows])

    def _draw_alike(self, logits: Tensor, sequences: list[Sample]) -> None:
        params = sequences[0].group.params
        numbers = seen = too_early = None
        if params.do_sample:
            numbers = torch.tensor([s.numbers[len(s.token_ids)] for s in sequences], device=self._device)
        if params.repetition_penalty != 1.0:
            seen = torch.stack([s.seen for s in sequences if s.seen is not None])
        early = [row for row, s in enumerate(sequences) if len(s.token_ids) < s.group.params.min_new_tokens]
        if early:
            too_early = self._tensor(early)
        drawn, logprobs = sampling.sample(logits, params, numbers=numbers, seen=seen, too_early=too_early)
        for row, (s, token, logprob) in enumerate(zip(sequences, drawn.tolist(), logprobs.tolist(), strict=True)):
            if math.isnan(logprob):
                raise RunError(
                    f"the model's logits are not numbers at token {len(s.token_ids)} of prompt "
                    f"{s.group.prompt.index}: its weights or its input are broken (a learning rate too high?)"
                )
            s.token_ids.append(token)
            s.logprobs.append(logprob)
            s.ended = token in params.stop_token_ids
            if s.seen is not None:
                s.seen[token] = True
            if s.group.watch is not None and not s.group.watch(s, logits[row]):
                s.stopped = True

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)
