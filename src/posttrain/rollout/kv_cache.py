"""Keys and values of the sequences being decoded, and the attention that reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Keys and values of every layer, ``slots`` sequences of at most ``capacity`` tokens, more after ``reserve``.

    A layer's tensors are made at its first write, when its number of heads, head size and dtype are known. They lie as
    [Hkv, slots * capacity + scratch, D], so that writing any set of tokens is one index copy; ``read`` shows them as
    [slots, Hkv, L, D]. What is not written yet is zero: a masked place is read too, and counts 0 times its content,
    which is not 0 where unset memory happens to hold NaN or infinity.

    Args:
        slots: number of sequences.
        capacity: tokens of each that there is room for at first.
        limit: tokens of each that there will ever be; ``capacity`` unless given.
        scratch: further places of one token, for what is written and never read; they follow the last slot.
    """

    def __init__(self, slots: int, capacity: int, limit: int | None = None, *, scratch: int = 0) -> None:
        self.slots = slots
        self.scratch = scratch
        self.capacity = capacity
        self.limit = capacity if limit is None else limit
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(tensor.nbytes for stored in self.layers.values() for tensor in stored)

    def reserve(self, length: int) -> None:
        """Have room for ``length`` tokens of each slot, what is stored kept; changes ``capacity``, so places too.

        Room grows at least to the double, for its copying to cost less than twice the tokens, but not above ``limit``.

        Raises:
            ValueError: ``length`` is above ``limit``.
        """
        if length <= self.capacity:
            return
        if length > self.limit:
            raise ValueError(f"{length} tokens do not fit into a cache of at most {self.limit}")
        capacity = min(max(length, 2 * self.capacity), self.limit)
        for layer, (key, value) in self.layers.items():  # one layer at a time: both copies of all would be a peak
            self.layers[layer] = self._widened(key, capacity), self._widened(value, capacity)
        self.capacity = capacity

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store one layer's keys and values of N tokens.

        Args:
            layer: its index.
            places: [N] int64, ``slot * capacity + position``, all different.
            key, value: [1, Hkv, N, D].
        """
        if layer not in self.layers:
            self.layers[layer] = self._empty(key), self._empty(value)
        for stored, new in zip(self.layers[layer], (key, value), strict=True):
            stored.index_copy_(1, places, new[0])

    @property
    def first_scratch(self) -> int:
        """The place behind the last slot."""
        return self.slots * self.capacity

    def read(self, layer: int, slots: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Views [slots, Hkv, stop - start, D] of the first ``slots`` slots."""
        key, value = (
            self._by_slot(stored, self.capacity)[:, :slots, start:stop].transpose(0, 1) for stored in self.layers[layer]
        )
        return key, value

    def read_slot(self, layer: int, slot: int, stop: int) -> tuple[Tensor, Tensor]:
        """Views [1, Hkv, stop, D] of the first tokens of one slot."""
        first = slot * self.capacity
        key, value = (stored[None, :, first : first + stop] for stored in self.layers[layer])
        return key, value

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` into slot ``target``, in every layer."""
        a, b = source * self.capacity, target * self.capacity
        for stored in self.layers.values():
            for tensor in stored:
                tensor[:, b : b + length].copy_(tensor[:, a : a + length])

    def _widened(self, stored: Tensor, capacity: int) -> Tensor:
        heads, size = stored.shape[0], stored.shape[2]
        wider = stored.new_empty(heads, self.slots * capacity + self.scratch, size)
        wider[:, self.slots * capacity :] = 0
        by_slot = self._by_slot(wider, capacity)
        by_slot[:, :, : self.capacity] = self._by_slot(stored, self.capacity)
        by_slot[:, :, self.capacity :] = 0
        return wider

    def _by_slot(self, stored: Tensor, capacity: int) -> Tensor:
        """View [Hkv, slots, capacity, D]."""
        heads, size = stored.shape[0], stored.shape[2]
        return stored[:, : self.slots * capacity].view(heads, self.slots, capacity, size)

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[1], self.slots * self.capacity + self.scratch, like.shape[3])


@dataclass
class StepPlan:
    """The attention of one engine step over a packed row: one token for each live slot, then whole prompts.

    The live slots are 0 .. len(lengths) - 1. Both halves go through one forward, because reading the weights once
    costs less than reading them twice. It is an ``AttentionPlan`` of ``posttrain.models.attention``.

    Attributes:
        cache: where keys and values are kept; this step's are written before they are read.
        places: [N] int64, where each of the row's tokens is stored.
        lengths: number of tokens of each live slot, the one of this step included.
        prompts: number of tokens of each prompt, in row order.
        behind: number of a prompt -> its slot, and how many of its tokens lie there and are not in the row.
    """

    cache: KVCache
    places: Tensor
    lengths: Sequence[int]
    prompts: Sequence[int]
    behind: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    _decode_masks: dict[int | None, tuple[int, Tensor | None]] = field(default_factory=dict)
    _prompt_masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

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
        parts = []
        live = len(self.lengths)
        if live:
            parts.append(self._decode(layer, query[0, :, :live], scaling, sliding_window, softcap))
        start = live
        for number, length in enumerate(self.prompts):
            span = slice(start, start + length)
            start += length
            keys, values = key[:, :, span], value[:, :, span]
            if number in self.behind:
                slot, before = self.behind[number]
                keys, values = self.cache.read_slot(layer, slot, before + length)
            parts.append(self._prefill(query[:, :, span], keys, values, scaling, sliding_window, softcap))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out[None]

    def _decode(
        self, layer: int, query: Tensor, scaling: float | None, window: int | None, softcap: float | None
    ) -> Tensor:
        """One query per live slot [Hq, S, D] -> [S, Hq, D]."""
        if window not in self._decode_masks:
            self._decode_masks[window] = self._decode_mask(window, query)
        start, mask = self._decode_masks[window]
        key, value = self.cache.read(layer, len(self.lengths), start, max(self.lengths))
        return decode_attention(query, key, value, mask, scaling, softcap)

    def _decode_mask(self, window: int | None, like: Tensor) -> tuple[int, Tensor | None]:
        """(first position that any slot reads, additive mask [S, 1, 1, L] or None when every slot reads all)."""
        longest, shortest = max(self.lengths), min(self.lengths)
        start = 0 if window is None else max(0, shortest - window)
        if longest == shortest:
            return start, None
        lengths = torch.tensor(self.lengths, device=like.device)
        return start, decode_mask(torch.arange(start, longest, device=like.device), lengths, window, like)

    def _prefill(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Causal attention of one prompt's last n tokens: query [1, Hq, n, D], key and value [1, Hkv, m, D], m >= n.

        Returns:
            [n, Hq, D].
        """
        length, total = query.shape[2], key.shape[2]
        window = None if window is None or window >= total else window
        if window is None and softcap is None and length == total:
            shared = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)
            return out[0].transpose(0, 1)
        if (length, total, window) not in self._prompt_masks:
            self._prompt_masks[length, total, window] = _causal(length, total, window, query)
        mask = self._prompt_masks[length, total, window]
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        if softcap is None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        else:
            out = _softcapped(query, key, value, mask, scaling, softcap)
        return out[0].transpose(0, 1)


def decode_mask(positions: Tensor, lengths: Tensor, window: int | None, like: Tensor) -> Tensor:
    """What each slot's newest token reads, as numbers added to scores.

    Args:
        positions: [L] of the tokens that are there to be read.
        lengths: [S] tokens of each slot, the newest included.
        window: a slot reads this many last tokens; None is all.
        like: of the dtype wanted.

    Returns:
        [S, 1, 1, L], 0 or minus infinity.
    """
    ends = lengths[:, None]
    visible = positions < ends
    if window is not None:
        visible &= positions >= ends - window
    return _additive(visible, like)[:, None, None]


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """One query per slot; query heads that share a key head become its queries.

    Args:
        query: [Hq, S, D]. key, value: [S, Hkv, L, D]. mask: of ``decode_mask``, or None.

    Returns:
        [S, Hq, D].
    """
    grouped = query.view(key.shape[1], -1, *query.shape[1:]).permute(2, 0, 1, 3)  # [S, Hkv, G, D]
    if softcap is None:
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    else:
        out = _softcapped(grouped, key, value, mask, scaling, softcap)
    return out.flatten(1, 2)


def _causal(length: int, total: int, window: int | None, like: Tensor) -> Tensor:
    """[n, m] additive mask of the last n of m tokens: i reads j <= i, within a window only its last ones."""
    positions = torch.arange(total, device=like.device)
    distance = positions[total - length :, None] - positions
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    return _additive(visible, like)


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap); softmax in fp32. [.., n, D]."""
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (factor / softcap))
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
