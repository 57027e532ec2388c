"""What the trunk keeps for its backward pass, moved to the computer's memory until it is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 1 << 16
"""Bytes below which a tensor stays: moving it costs more than it frees."""


class _Moved(NamedTuple):
    """A tensor that lies elsewhere, where it belongs, and the storage that it was copied from."""

    tensor: Tensor
    device: torch.device
    source: StorageWeakRef


class Offload:
    """Moves activations away as the forward pass keeps them, and back as the backward pass asks for them.

    Weights are never moved. A tensor that several operations keep is moved once.

    Args:
        trunk: whose activations; its forward passes with gradients are watched from now on.
        pinned: into page-locked memory, which a GPU copies from and to beside its work.
    """

    def __init__(self, trunk: nn.Module, *, pinned: bool) -> None:
        self.pinned = pinned
        self.moved_bytes = 0
        self._weights: frozenset[int] = frozenset()
        self._known: dict[tuple[Any, ...], _Moved] = {}
        self._watching: AbstractContextManager[None] | None = None
        trunk.register_forward_pre_hook(self._begin)
        trunk.register_forward_hook(self._end, always_call=True)

    def _begin(self, trunk: nn.Module, *_: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self._weights = frozenset(p.untyped_storage().data_ptr() for p in trunk.parameters())
        self._watching = saved_tensors_hooks(self._pack, self._unpack)
        self._watching.__enter__()

    def _end(self, *_: Any) -> None:
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = None
        self._known.clear()  # from here on the graph alone keeps what is needed

    def _pack(self, tensor: Tensor) -> Tensor | _Moved:
        if tensor.nbytes < SMALLEST or tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
        known = self._known.get(place)
        if known is None or known.source.expired():  # the address may be another tensor's by now
            away = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=self.pinned)
            away.copy_(tensor, non_blocking=self.pinned)
            self.moved_bytes += away.nbytes
            known = self._known[place] = _Moved(away, tensor.device, StorageWeakRef(tensor.untyped_storage()))
        return known

    def _unpack(self, kept: Tensor | _Moved) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return kept.tensor.to(kept.device, non_blocking=self.pinned, copy=kept.device.type == "cpu")
