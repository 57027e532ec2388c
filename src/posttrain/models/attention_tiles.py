"""Packed attention on a CPU: few large matrix products over tiles of queries, nothing of theirs kept for backward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.models.attention_terms import Layout, Terms

# A tile's scores stay in a core's cache: so many numbers, in at least and at most so many rows.
_TILE_NUMBERS = 1 << 18
_FEWEST_ROWS, _MOST_ROWS = 16, 64
# What one more tile costs in dispatch, in scores of all heads.
_TILE_OVERHEAD = 1 << 10


@dataclass(frozen=True)
class Tile:
    """Neighbouring queries with all the keys that any of them sees.

    Attributes:
        start, stop: packed positions of the queries.
        keys: packed ranges of the keys, in order; the last one ends with the queries.
        free: so many of the first keys are seen by every query.
        mask: [S, K - free] 0 or -inf, added to the scores of the other keys.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    free: int
    mask: Tensor

    @property
    def num_keys(self) -> int:
        """K."""
        return sum(end - begin for begin, end in self.keys)


def tile_attention(plan: Layout, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """Exact attention over a packed row.

    Args:
        plan: who attends to whom.
        query: [1, Hq, N, D]; key, value: [1, Hkv, N, D], float32 or float64 on a CPU.
        terms: see there.

    Returns:
        [1, N, Hq, D].
    """
    heads = query.shape[1]
    address = ("tiles", heads, terms.window, query.dtype)
    if address not in plan.cache:
        plan.cache[address] = tiles(plan, heads, terms.window, query.dtype)
    out: Tensor = _Tiled.apply(query, key, value, plan.cache[address], terms)  # type: ignore[no-untyped-call]
    return out


def tiles(plan: Layout, heads: int, window: int | None, dtype: torch.dtype) -> list[Tile]:
    """Cut the queries of a packed row: long segments into several tiles, short neighbours into one.

    Args:
        plan: who attends to whom. heads: of the queries.
        window: see ``Terms``. dtype: of the masks.
    """
    masks: dict[Any, Tensor] = {}
    found: list[Tile] = []
    pieces = _pieces(plan, heads, window)
    first = 0
    while first < len(pieces):
        start, stop, owner, position = pieces[first]
        keys = _keys(plan, owner, stop, position, window)
        area = _area(start, stop, keys)
        last = first + 1
        while last < len(pieces) and pieces[last][1] - start <= _MOST_ROWS:
            begin, end, other, place = pieces[last]
            lowest = min(position, place)
            joined = _keys(plan, owner, end, lowest, window)
            apart = area + _area(begin, end, _keys(plan, other, end, place, window)) + _TILE_OVERHEAD
            if _area(start, end, joined) > apart:
                break
            stop, keys, position, area, last = end, joined, lowest, _area(start, end, joined), last + 1
        found.append(_tile(plan, start, stop, keys, window, dtype, masks))
        first = last
    return found


def tile_rows(heads: int, keys: int) -> int:
    """How many queries of one long segment stand in a tile, when they see so many keys."""
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _TILE_NUMBERS // (heads * keys) // 16 * 16))


def _pieces(plan: Layout, heads: int, window: int | None) -> list[tuple[int, int, int, int]]:
    """Packed ranges of queries within one segment, few enough that their scores stay in the cache.

    Returns:
        (start, stop, segment, position of the first one in its row).
    """
    found = []
    for number, (segment, start, past) in enumerate(zip(plan.segments, plan.starts, plan.past, strict=True)):
        longest = past + segment.length if window is None else min(past + segment.length, window + _MOST_ROWS)
        rows = tile_rows(heads, longest)
        edges = [*range(start, start + segment.length, rows), start + segment.length]
        found += [(a, b, number, past + a - start) for a, b in itertools.pairwise(edges)]
    return found


def _keys(plan: Layout, owner: int, stop: int, position: int, window: int | None) -> tuple[tuple[int, int], ...]:
    """Ranges of keys for the queries of a tile.

    Args:
        owner: segment of the first query. stop: packed position behind the last one.
        position: the lowest of the queries' positions in their rows, which reaches furthest back with a window.
    """
    ranges: list[tuple[int, int]] = []
    oldest = 0 if window is None else position - window + 1
    for number in plan.chain(owner):
        begin, end = plan.starts[number], plan.starts[number] + plan.segments[number].length
        begin = max(begin, begin + oldest - plan.past[number])  # tokens before that are out of every query's window
        end = stop if number == owner else end
        if begin >= end:
            continue
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((begin, end))
    return tuple(ranges)


def _area(start: int, stop: int, keys: Sequence[tuple[int, int]]) -> int:
    """Numbers in the scores of one head."""
    return (stop - start) * sum(end - begin for begin, end in keys)


def _tile(
    plan: Layout,
    start: int,
    stop: int,
    keys: tuple[tuple[int, int], ...],
    window: int | None,
    dtype: torch.dtype,
    masks: dict[Any, Tensor],
) -> Tile:
    """The tile of these queries and keys; equal masks are one tensor."""
    columns = torch.cat([torch.arange(begin, end) for begin, end in keys])
    allowed = plan.allowed(torch.arange(start, stop)[:, None], columns[None], window)
    free = int(allowed.all(dim=0).long().cumprod(dim=0).sum())
    allowed = allowed[:, free:]
    address = (tuple(allowed.shape), allowed.numpy().tobytes())
    if address not in masks:
        masks[address] = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    return Tile(start, stop, keys, free, masks[address])


class _Tiled(torch.autograd.Function):
    """Softmax attention tile by tile; backward makes each tile's weights again, so only its inputs are kept.

    With P = softmax(s QKᵀ), dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − rowsum(dP ∘ P)): dQ = s dS K, dK = s dSᵀ Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: list[Tile], terms: Terms) -> Tensor:
        ctx.plan, ctx.terms = plan, terms
        stays: list[Tensor] = []
        shape = _Shape.of(query, key)
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        work = query.new_empty(max(shape.rows(tile) * tile.num_keys for tile in plan) * shape.pairs)
        for tile in plan:
            weights = shape.scores(work, tile)
            _weigh(weights, shape.queries(query, tile), key[0], tile, terms, shape)
            if terms.dropout:
                stays.append(torch.empty(weights.shape, dtype=torch.bool).bernoulli_(1 - terms.dropout))
                weights.mul_(stays[-1]).mul_(1 / (1 - terms.dropout))
            shape.put(out, tile, _product(weights, value[0], tile))
        ctx.save_for_backward(query, key, value, *stays)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *stays = ctx.saved_tensors
        terms: Terms = ctx.terms
        shape = _Shape.of(query, key)
        d_query = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        d_key, d_value = torch.zeros_like(key[0]), torch.zeros_like(value[0])
        room = max(shape.rows(tile) * tile.num_keys for tile in ctx.plan) * shape.pairs
        work = [query.new_empty(room) for _ in range(3 if terms.softcap is not None else 2)]
        for number, tile in enumerate(ctx.plan):
            q = shape.queries(query, tile)
            g = shape.queries(grad.transpose(1, 2), tile)
            weights, d_weights = (shape.scores(buffer, tile) for buffer in work[:2])
            capped = None if terms.softcap is None else shape.scores(work[2], tile)
            _weigh(weights, q, key[0], tile, terms, shape, capped)
            _scores(d_weights, g, value[0], tile, 1.0)
            used = weights
            if terms.dropout:
                factor = stays[number] * (1 / (1 - terms.dropout))
                used = weights * factor
                d_weights.mul_(factor)
            _spread(d_value, used, g, tile, 1.0)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if capped is not None and terms.softcap is not None:
                d_scores = d_scores * (1 - (capped / terms.softcap).square_())
            _spread(d_key, d_scores, q, tile, terms.scale)
            shape.put(d_query, tile, _product(d_scores, key[0], tile).mul_(terms.scale))
        return d_query.transpose(1, 2), d_key[None], d_value[None], None, None


@dataclass(frozen=True)
class _Shape:
    """How heads are laid out: each of ``pairs`` key heads answers ``group`` query heads, stacked as rows."""

    pairs: int
    group: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> _Shape:
        return cls(key.shape[1], query.shape[1] // key.shape[1])

    def rows(self, tile: Tile) -> int:
        """Rows of one key head's products."""
        return self.group * (tile.stop - tile.start)

    def scores(self, work: Tensor, tile: Tile) -> Tensor:
        """[Hkv, G * S, K] in a work space."""
        rows, columns = self.rows(tile), tile.num_keys
        return work[: self.pairs * rows * columns].view(self.pairs, rows, columns)

    def queries(self, x: Tensor, tile: Tile) -> Tensor:
        """[Hkv, G * S, D] of [1, Hq, N, D]."""
        return x[0, :, tile.start : tile.stop].reshape(self.pairs, self.rows(tile), x.shape[-1])

    def put(self, out: Tensor, tile: Tile, rows: Tensor) -> None:
        """Write [Hkv, G * S, D] into [1, N, Hq, D]."""
        part = rows.view(self.pairs * self.group, tile.stop - tile.start, rows.shape[-1])
        out[0, tile.start : tile.stop] = part.transpose(0, 1)


def _weigh(
    weights: Tensor, q: Tensor, key: Tensor, tile: Tile, terms: Terms, shape: _Shape, capped: Tensor | None = None
) -> None:
    """Fill ``weights`` [Hkv, G * S, K] with the softmax of the scores; ``capped`` receives soft-capped scores."""
    _scores(weights, q, key, tile, terms.scale)
    if terms.softcap is not None:
        weights.div_(terms.softcap).tanh_().mul_(terms.softcap)
        if capped is not None:
            capped.copy_(weights)
    if tile.mask.numel():
        by_query = weights.view(shape.pairs, shape.group, tile.stop - tile.start, -1)
        by_query[..., tile.free :] += tile.mask
    torch.softmax(weights, dim=-1, out=weights)


def _columns(scores: Tensor, tile: Tile) -> list[tuple[Tensor, int, int]]:
    """The columns of each range of keys, with the range."""
    parts = scores.split([end - begin for begin, end in tile.keys], dim=2)
    return [(part, begin, end) for part, (begin, end) in zip(parts, tile.keys, strict=True)]


def _scores(out: Tensor, rows: Tensor, columns: Tensor, tile: Tile, scale: float) -> None:
    """``out`` = scale * rows columnsᵀ over the tile's keys."""
    for part, begin, end in _columns(out, tile):
        torch.baddbmm(part, rows, columns[:, begin:end].transpose(1, 2), beta=0, alpha=scale, out=part)


def _product(scores: Tensor, columns: Tensor, tile: Tile) -> Tensor:
    """[Hkv, G * S, D] = scores columns over the tile's keys."""
    found: Tensor | None = None
    for part, begin, end in _columns(scores, tile):
        if found is None:
            found = torch.bmm(part, columns[:, begin:end])
        else:
            torch.baddbmm(found, part, columns[:, begin:end], out=found)
    assert found is not None
    return found


def _spread(out: Tensor, scores: Tensor, rows: Tensor, tile: Tile, scale: float) -> None:
    """Add scale * scoresᵀ rows to the tile's keys in ``out`` [Hkv, N, D]."""
    for part, begin, end in _columns(scores, tile):
        target = out[:, begin:end]
        torch.baddbmm(target, part.transpose(1, 2), rows, alpha=scale, out=target)
