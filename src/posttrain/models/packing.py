"""A ragged batch as one packed row of live tokens, shared prefixes computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.types import Batch

# Shorter shared prefixes cost more bookkeeping than they save.
SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class Segment:
    """A run of packed tokens that attend to each other causally, and to the whole of a shared prefix before them.

    Attributes:
        length: tokens of this segment.
        prefix: number of the segment that holds the shared prefix, or None.
    """

    length: int
    prefix: int | None = None


@dataclass(frozen=True)
class Packing:
    """Live tokens of a batch in one row, with who attends to whom; the ``AttentionPlan`` of training and scoring.

    Attributes:
        input_ids: [1, N]. position_ids: [1, N], counted within each sequence.
        index: [B, T] packed position of token (b, t); 0 on padding.
        segments: in packed order; their lengths sum to N.
    """

    input_ids: Tensor
    position_ids: Tensor
    index: Tensor
    segments: tuple[Segment, ...]
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_tokens(self) -> int:
        """N, the tokens that linear layers run on."""
        return int(self.input_ids.shape[1])

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
        """See ``AttentionPlan.attend``: each segment by itself, a shared prefix's keys and values in front."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        lengths = [segment.length for segment in self.segments]
        # split, not slices: its backward is one concatenation instead of a full-size zero tensor per segment
        queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
        outs = []
        for number, segment in enumerate(self.segments):
            k, v = keys[number], values[number]
            if segment.prefix is not None:
                k = torch.cat((keys[segment.prefix], k), dim=2)
                v = torch.cat((values[segment.prefix], v), dim=2)
            outs.append(self._causal(queries[number], k, v, scaling, dropout, sliding_window, softcap))
        return torch.cat(outs, dim=2).transpose(1, 2)

    def _causal(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Causal attention of the last tokens of a sequence: [1, H, S, D] queries over [1, H, C + S, D] keys."""
        ends, total = q.shape[2], k.shape[2]
        if window is not None and window >= total:
            window = None
        if softcap is None:
            # is_causal aligns the mask top-left, which is right only for a square
            square = ends == total and window is None
            mask = None if square else self._mask(ends, total, window, q.device)
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=square, scale=scaling)
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~self._mask(ends, total, window, q.device), float("-inf"))
        return F.dropout(scores.softmax(dim=-1), dropout) @ v

    def _mask(self, ends: int, total: int, window: int | None, device: torch.device) -> Tensor:
        """[S, C + S] bool, True where a query may look; the same one serves all layers."""
        cached = self._masks.get((ends, total, window))
        if cached is None:
            distance = torch.arange(total - ends, total, device=device)[:, None] - torch.arange(total, device=device)
            cached = distance >= 0
            if window is not None:
                cached &= distance < window
            self._masks[ends, total, window] = cached
        return cached


def packed(batch: Batch, *, share_prefixes: bool = True) -> Packing:
    """Pack a batch: padding left out, and a token prefix that neighbouring rows share kept once.

    Rows that share prompts should be neighbours: a pair's two answers, the completions of one prompt. Which runs of
    rows share is chosen to leave out as many tokens as possible. Outputs and gradients equal those of padded rows,
    because a token's hidden state depends on nothing after it.

    Args:
        batch: [B, T] right-padded rows, none empty.
        share_prefixes: False packs every row in full.
    """
    rows = [ids[:n] for ids, n in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)]
    runs = _sharing_runs(rows) if share_prefixes else [(i, i + 1, 0) for i in range(len(rows))]
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    index = torch.zeros(batch.input_ids.shape, dtype=torch.int64)
    for first, last, shared in runs:
        prefix_start, prefix_number = len(tokens), None
        if shared:
            prefix_number = len(segments)
            segments.append(Segment(shared))
            tokens += rows[first][:shared]
            positions += range(shared)
        for b in range(first, last):
            row = rows[b]
            index[b, :shared] = torch.arange(prefix_start, prefix_start + shared)
            index[b, shared : len(row)] = torch.arange(len(tokens), len(tokens) + len(row) - shared)
            if len(row) > shared:
                segments.append(Segment(len(row) - shared, prefix_number))
                tokens += row[shared:]
                positions += range(shared, len(row))
    device = batch.input_ids.device
    return Packing(
        torch.tensor([tokens], device=device),
        torch.tensor([positions], device=device),
        index.to(device),
        tuple(segments),
    )


def _sharing_runs(rows: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Cut rows into runs ``(first, last, shared)`` so that Σ (rows of the run - 1) * shared is largest.

    A run's shared prefix is the smallest common prefix of neighbours within it; dynamic programming over cuts.
    """
    count = len(rows)
    neighbours = [_common_prefix(rows[i], rows[i + 1]) for i in range(count - 1)]
    best = [0] * (count + 1)
    cut = [(0, 0)] * (count + 1)  # where the run ending here begins, and what it shares
    for end in range(1, count + 1):
        shared = len(rows[end - 1])
        best[end], cut[end] = best[end - 1], (end - 1, 0)
        for start in range(end - 2, -1, -1):
            shared = min(shared, neighbours[start])
            if shared < SHORTEST_PREFIX:
                break
            saved = best[start] + (end - 1 - start) * shared
            if saved > best[end]:
                best[end], cut[end] = saved, (start, shared)
    runs = []
    end = count
    while end:
        start, shared = cut[end]
        runs.append((start, end, shared))
        end = start
    return runs[::-1]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
