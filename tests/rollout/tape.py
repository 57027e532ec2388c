"""What a CUDA graph does, on a CPU: the same kernels on the same memory again, whatever Python has done since."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Kernels(TorchDispatchMode):
    """Writes down every kernel that runs within it; to wait for a value of the device is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[int]]] = []
        self.numbers: dict[int, int] = {}  # of tensors that the step made, by their id
        self.outside: dict[int, Tensor] = {}  # the memory of tensors that were there before, by their id
        self.alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise RuntimeError(f"{func} waits for the device")
        call = func, *(tree_map(self._named, part) for part in (args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((*call, [self._number(leaf) for leaf in tree_flatten(out)[0]]))
        return out

    def replay(self) -> None:
        made: dict[int, Any] = {}

        def found(leaf: Any) -> Any:
            return made[leaf.number] if isinstance(leaf, Made) else leaf

        for func, args, kwargs, numbers in self.calls:
            out = func(*tree_map(found, args), **tree_map(found, kwargs))
            made.update(zip(numbers, tree_flatten(out)[0], strict=True))

    def _named(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self.numbers:
            return Made(self.numbers[id(leaf)])
        if id(leaf) not in self.outside:
            self.alive.append(leaf)
            self.outside[id(leaf)] = leaf.detach()  # shares this memory still when leaf.data becomes another
        return self.outside[id(leaf)]

    def _number(self, leaf: Any) -> int:
        self.alive.append(leaf)
        return self.numbers.setdefault(id(leaf), len(self.alive))


class Made:
    """The place of a tensor that the step itself makes."""

    def __init__(self, number: int) -> None:
        self.number = number


class Tape:
    """A ``Recorder``, which counts what it is asked for."""

    def __init__(self) -> None:
        self.rehearsals = self.records = self.replays = self.forgotten = 0

    def rehearse(self, step: Callable[[], None]) -> None:
        self.rehearsals += 1
        with Kernels():
            step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.records += 1
        kernels = Kernels()
        with kernels:
            step()

        def replay() -> None:
            self.replays += 1
            kernels.replay()

        return replay

    def forget(self) -> None:
        self.forgotten += 1
