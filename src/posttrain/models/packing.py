"""A ragged batch as one packed row of live tokens, shared prefixes computed once, to any depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from posttrain.models.attention_backends import attended
from posttrain.models.attention_terms import Terms
from posttrain.types import Batch

# Shorter beginnings, such as the first tokens of a template, cost more bookkeeping than they save.
SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class Segment:
    """A run of packed tokens that attend to each other causally, and to the whole of the prefixes before them.

    Attributes:
        length: tokens of this segment.
        prefix: number of the segment that holds the shared prefix right before it, or None. That one may have a prefix
            in turn: a token sees the whole chain.
    """

    length: int
    prefix: int | None = None


@dataclass(frozen=True)
class Packing:
    """Live tokens of a batch in one row, with who attends to whom; the ``AttentionPlan`` of training and scoring.

    Segments are in depth-first order: what shares a prefix follows it without a gap. So a token q sees a token k
    exactly when ``k <= q < until[k]``.

    Attributes:
        input_ids: [1, N]. position_ids: [1, N], counted within each sequence.
        index: [B, T] packed position of token (b, t); 0 on padding.
        segments: in packed order; their lengths sum to N.
        backends: the ways to compute attention that may be used, best first.
    """

    input_ids: Tensor
    position_ids: Tensor
    index: Tensor
    segments: tuple[Segment, ...]
    backends: tuple[str, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """N, the tokens that linear layers run on."""
        return int(self.input_ids.shape[1])

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Packed position of each segment's first token."""
        return tuple(accumulate((segment.length for segment in self.segments), initial=0))[:-1]

    @cached_property
    def past(self) -> tuple[int, ...]:
        """How many tokens of its row stand before each segment: all prefixes of its chain together."""
        found: list[int] = []
        for segment in self.segments:
            before = segment.prefix
            found.append(0 if before is None else found[before] + self.segments[before].length)
        return tuple(found)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Packed position behind the last token that may look at each segment: the end of all that it is prefix of."""
        found = [start + segment.length for start, segment in zip(self.starts, self.segments, strict=True)]
        for number in range(len(found) - 1, -1, -1):
            before = self.segments[number].prefix
            if before is not None:
                found[before] = max(found[before], found[number])
        return tuple(found)

    @property
    def shares(self) -> bool:
        """Whether any prefix is shared."""
        return any(segment.prefix is not None for segment in self.segments)

    @property
    def num_pairs(self) -> int:
        """How many (query, key) pairs one head of full causal attention computes."""
        return sum(
            segment.length * past + segment.length * (segment.length + 1) // 2
            for segment, past in zip(self.segments, self.past, strict=True)
        )

    @property
    def num_computed(self) -> int:
        """How many pairs attention did compute: those of its tiles; without tiles, the masked half of squares too."""
        squares = sum(s.length * (past + s.length) for s, past in zip(self.segments, self.past, strict=True))
        tiled = [tiles for address, tiles in self.cache.items() if address[0] == "tiles"]
        return max((sum((t.stop - t.start) * t.num_keys for t in tiles) for tiles in tiled), default=squares)

    @cached_property
    def until(self) -> Tensor:
        """[N] packed position behind the last token that may look at this one."""
        lengths = torch.tensor([segment.length for segment in self.segments])
        return torch.tensor(self.ends).repeat_interleave(lengths).to(self.input_ids.device)

    def chain(self, number: int) -> list[int]:
        """A segment and all its prefixes, the outermost first."""
        found = [number]
        while (before := self.segments[found[-1]].prefix) is not None:
            found.append(before)
        return found[::-1]

    def allowed(self, rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
        """Whether the token at a packed position may look at another.

        Args:
            rows: packed positions of queries. columns: of keys, broadcast against them.
            window: how many last tokens of its row a token sees, itself among them; None is all.
        """
        seen = (columns <= rows) & (rows < self.until[columns])
        if window is not None:
            positions = self.position_ids[0]
            seen = seen & (positions[rows] - positions[columns] < window)
        return seen

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
        """See ``AttentionPlan.attend``: by the first backend that can."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if sliding_window is not None and sliding_window >= self._longest:
            sliding_window = None
        terms = Terms(scale=scale, dropout=dropout, window=sliding_window, softcap=softcap)
        return attended(self, query, key, value, terms, self.backends)

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest row."""
        return max(past + segment.length for past, segment in zip(self.past, self.segments, strict=True))


def packed(batch: Batch, *, share_prefixes: bool = True, backends: tuple[str, ...] = ()) -> Packing:
    """Pack a batch: padding left out, and every beginning that rows share kept once.

    The rows, in order of their token ids, are a tree: a system prompt that all share, under it prompts, under each the
    beginning that some of its answers share. Each branch is a segment, from ``SHORTEST_PREFIX`` common tokens on.
    Outputs and gradients equal those of padded rows, because a token's hidden state depends on nothing after it.

    Args:
        batch: [B, T] right-padded rows, none empty.
        share_prefixes: False packs every row in full.
        backends: see ``Packing``.
    """
    table, lengths = batch.input_ids.cpu(), batch.lengths.tolist()
    rows = [ids[:n] for ids, n in zip(table.tolist(), lengths, strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__) if share_prefixes else list(range(len(rows)))
    shared = _neighbours(table[order], torch.tensor([lengths[b] for b in order])) if share_prefixes else None
    index = torch.zeros(table.shape, dtype=torch.int64)
    segments: list[Segment] = []
    tokens: list[Tensor] = []
    positions: list[Tensor] = []
    start = 0
    for first, last, begin, end, parent in _branches([lengths[b] for b in order], shared):
        own = table[order[first], begin:end]
        segments.append(Segment(end - begin, parent))
        tokens.append(own)
        positions.append(torch.arange(begin, end))
        index[order[first:last], begin:end] = torch.arange(start, start + end - begin)
        start += end - begin
    device = batch.input_ids.device
    ids, places = torch.cat(tokens)[None].to(device), torch.cat(positions)[None].to(device)
    return Packing(ids, places, index.to(device), tuple(segments), backends)


def _branches(lengths: Sequence[int], shared: Sequence[int] | None) -> Iterator[tuple[int, int, int, int, int | None]]:
    """The segments of sorted rows, depth first.

    Args:
        lengths: of the rows. shared: tokens that each row has in common with the next; None is nothing at all.

    Yields:
        Rows ``first`` to ``last`` share tokens ``begin`` to ``end``, behind the segment of this number (or None).
    """
    if shared is None:
        yield from ((row, row + 1, 0, length, None) for row, length in enumerate(lengths))
        return
    count = 0
    todo: list[tuple[int, int, int, int | None]] = [(0, len(lengths), 0, None)]
    while todo:
        first, last, begin, parent = todo.pop()
        end = lengths[first] if last == first + 1 else min(shared[first : last - 1])
        alone = last == first + 1
        if end > begin and (alone or end >= SHORTEST_PREFIX):
            yield first, last, begin, end, parent
            begin, parent, count = end, count, count + 1
        if not alone:
            cuts = [first, *(i + 1 for i in range(first, last - 1) if shared[i] == end), last]
            todo += [(a, b, begin, parent) for a, b in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]


def _neighbours(table: Tensor, lengths: Tensor) -> list[int]:
    """How many tokens each row of [B, T] has in common with the next."""
    if len(table) < 2:
        return []
    inside = torch.arange(table.shape[1]) < torch.minimum(lengths[:-1], lengths[1:])[:, None]
    return ((table[:-1] == table[1:]) & inside).long().cumprod(dim=1).sum(dim=1).tolist()
