"""Decode steps on tensors that stay where they are, so that a GPU can repeat one without Python.

A step of a small model is hundreds of kernels, each done sooner than Python asks for the next. A CUDA graph asks for
all of them at once, but always for the same ones at the same addresses. So whatever differs between steps lies in one
tensor of fixed size, masks are made from it on the device, and the numbers of slots and of tokens that are read are
rounded up, so that few graphs serve all steps. Rows without a sequence write to places of the cache that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.models.logits import logits_of
from posttrain.rollout.kv_cache import KVCache, decode_attention, decode_mask

CONTEXT = 128
"""The number of tokens that a step reads is a multiple of this, or all that the cache has room for."""


class RecordingError(Exception):
    """A step cannot be recorded; it says why. What it would have written is not to be relied on."""


class Recorder(Protocol):
    """Makes of a step something that runs again at the same addresses, without Python."""

    def rehearse(self, step: Callable[[], None]) -> None:
        """Run the step once; RuntimeError if it does what cannot be recorded."""
        ...

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What repeats the step, which need not have run; RuntimeError if it cannot be recorded."""
        ...

    def forget(self) -> None:
        """Nothing recorded so far will run again."""
        ...


@dataclass
class StaticPlan:
    """The attention of one token for each of the first slots; an ``AttentionPlan`` of ``posttrain.models.attention``.

    Attributes:
        cache: where keys and values are kept; this step's are written before they are read.
        places: [S] int64, where each token is stored.
        lengths: [S] int64, tokens of each slot, the one of this step included.
        context: tokens of each slot that are read, at least the longest of ``lengths``.
    """

    cache: KVCache
    places: Tensor
    lengths: Tensor
    context: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See ``AttentionPlan.attend``; ``dropout`` does not apply to generation."""
        self.cache.write(layer, self.places, key, value)
        window = None if sliding_window is None or sliding_window >= self.context else sliding_window
        if window not in self._masks:
            positions = torch.arange(self.context, device=query.device)
            self._masks[window] = decode_mask(positions, self.lengths, window, query)
        keys, values = self.cache.read(layer, len(self.places), 0, self.context)
        return decode_attention(query[0], keys, values, self._masks[window], scaling, softcap)[None]


class StaticStep:
    """Decode steps of one cache: trunk and logits for one token of each live slot.

    A step of new sizes runs as it is, which warms up what a recording relies on; the second of these sizes is recorded.
    A recording reads weights and cache where they were: when any of them has moved, all are made anew.

    Args:
        model: a causal language model under ``posttrain.models.attention``.
        cache: with as many scratch places as slots; its layers have been written to before the first step.
        recorder: None runs every step as it is.

    Attributes:
        sizes: rows of the last step, and tokens that it read for each.
    """

    def __init__(self, model: Any, cache: KVCache, recorder: Recorder | None = None) -> None:
        if cache.scratch < cache.slots:
            raise ValueError("a static step needs as many scratch places as slots")
        self.model = model
        self.cache = cache
        self.recorder = recorder
        self.sizes = 0, 0
        device = model.get_input_embeddings().weight.device
        self._inputs = torch.zeros(4 * cache.slots, dtype=torch.int64, device=device)
        # transformers takes a mask of four dimensions as finished: it then neither builds one nor looks at the tokens
        self._no_mask = torch.zeros(1, 1, 1, 1, device=device)
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._weights: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._addresses: list[int] = []
        self._recordings: dict[tuple[int, int], Callable[[], None] | None] = {}  # None: has run once

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            tokens: [S] the newest token of slots 0 .. S - 1.
            positions: [S] where each stands; the cache has room for it.

        Returns:
            (hidden [S, D], logits [S, V]); the next step overwrites both.

        Raises:
            RecordingError: the step has not run, because it cannot be recorded.
        """
        live = len(tokens)
        rows = rounded_rows(live, self.cache.slots)
        context = rounded_context(max(positions) + 1, self.cache.capacity)
        self._load(tokens, positions, rows)
        self._advance(rows, context)
        self.sizes = rows, context
        if self._outputs is None:
            raise RuntimeError("a step was recorded before it had run")
        hidden, logits = self._outputs
        return hidden[:live], logits[:live]

    def _load(self, tokens: Sequence[int], positions: Sequence[int], rows: int) -> None:
        """Token ids, positions, places and lengths of the live slots and, after them, of rows without a sequence."""
        idle = range(len(tokens), rows)
        nothing = [0] * len(idle)
        places = [slot * self.cache.capacity + position for slot, position in enumerate(positions)]
        places += [self.cache.first_scratch + row for row in idle]
        lengths = [position + 1 for position in positions]
        columns = [*tokens, *nothing, *positions, *nothing, *places, *lengths, *([1] * len(idle))]
        self._inputs[: 4 * rows].copy_(torch.tensor(columns, dtype=torch.int64))

    def _advance(self, rows: int, context: int) -> None:
        step = partial(self._run, rows, context)
        if self.recorder is None:
            step()
            return
        if (addresses := self._where()) != self._addresses:
            self._recordings.clear()
            self.recorder.forget()
            self._addresses = addresses
        sizes = (rows, context)
        try:
            if sizes not in self._recordings:
                self.recorder.rehearse(step)
                self._recordings[sizes] = None
                return
            replay = self._recordings[sizes] or self.recorder.record(step)
        except RuntimeError as error:
            raise RecordingError(str(error)) from error
        self._recordings[sizes] = replay
        replay()

    def _run(self, rows: int, context: int) -> None:
        """The whole of a step, of which only ``rows`` and ``context`` are known to Python."""
        token_ids, positions, places, lengths = self._inputs[: 4 * rows].view(4, rows)
        out = self.model.get_decoder()(
            input_ids=token_ids[None],
            position_ids=positions[None],
            attention_mask=self._no_mask,
            use_cache=False,
            plan=StaticPlan(self.cache, places, lengths, context),
        )
        hidden = out.last_hidden_state[0]
        logits = logits_of(self.model, hidden)
        if self._outputs is None:
            slots = self.cache.slots
            self._outputs = (hidden.new_empty(slots, hidden.shape[1]), logits.new_empty(slots, logits.shape[1]))
        for kept, new in zip(self._outputs, (hidden, logits), strict=True):
            kept[:rows].copy_(new)

    def _where(self) -> list[int]:
        """The addresses that a recording holds, and what places depend on."""
        stored = [tensor.data_ptr() for layer in self.cache.layers.values() for tensor in layer]
        return [self.cache.capacity, *stored, *(tensor.data_ptr() for tensor in self._weights)]


def rounded_rows(live: int, slots: int) -> int:
    """The power of two that holds the live slots, at most all slots."""
    return min(1 << (live - 1).bit_length(), slots)


def rounded_context(length: int, capacity: int) -> int:
    """The multiple of ``CONTEXT`` that holds the longest slot, at most what there is room for."""
    return min(-(-length // CONTEXT) * CONTEXT, capacity)


class CudaRecorder:
    """CUDA graphs; as no two of them run at the same time, they share one pool of memory.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def rehearse(self, step: Callable[[], None]) -> None:
        """See ``Recorder.rehearse``: waiting for the device, which no graph can, is an error here already.

        A failed capture may leave the random generator of the device unusable; a failed rehearsal leaves nothing.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(self._stream):
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder.record``; other threads may go on using the device meanwhile."""
        with torch.cuda.stream(self._stream):  # a capture that fails leaves its own stream current
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
        return graph.replay

    def forget(self) -> None:
        """See ``Recorder.forget``: memory of graphs that are gone is not asked for again, but given back."""
        self._pool = torch.cuda.graph_pool_handle()
