"""What a run really computes: floating point operations and token positions, counted from what goes through the models.

A loop opens a ``Ledger`` for a phase; forwards, the engine and the sampler add to it. Nothing is measured while a model
runs: the first forward of each kind is watched once, for which of its matrices take part in the backward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.anatomy import Anatomy, layer_number, linear_modules, matrix_size, weight_of
from posttrain.models.linears import keeps_afterwards


@dataclass
class Work:
    """One phase's work, as counted.

    Attributes:
        flops: executed. ideal_flops: the fewest that what was asked for needs.
        positions: that linear layers ran on. held: those of them that held a token.
        tokens: real tokens of the rows asked about, each row in full.
        steps: of decoding, by number of live slots: ideal operations and bytes of all such steps.
        seconds: that it took.
    """

    flops: int = 0
    ideal_flops: int = 0
    positions: int = 0
    held: int = 0
    tokens: int = 0
    steps: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Work) -> None:
        """Add another's numbers to these."""
        for name in ("flops", "ideal_flops", "positions", "held", "tokens", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for slots, (flops, size) in other.steps.items():
            mine = self.steps.setdefault(slots, [0, 0])
            mine[0], mine[1] = mine[0] + flops, mine[1] + size

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "steps": {str(slots): pair for slots, pair in sorted(self.steps.items())}}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """From what ``plain`` gave."""
        steps = {int(slots): list(pair) for slots, pair in plain.get("steps", {}).items()}
        return cls(**{**plain, "steps": steps})


class Ledger(dict[str, Work]):
    """Phase -> its work; a phase that is asked for begins empty."""

    def __missing__(self, phase: str) -> Work:
        self[phase] = Work()
        return self[phase]


_OPEN: ContextVar[tuple[Ledger, str] | None] = ContextVar("_OPEN", default=None)


@contextmanager
def counting(ledger: Ledger, phase: str) -> Iterator[None]:
    """Within the context, what is computed counts as this phase's."""
    token = _OPEN.set((ledger, phase))
    try:
        yield
    finally:
        _OPEN.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Within the context, what is computed counts nowhere: trials, which every process makes for itself."""
    token = _OPEN.set(None)
    try:
        yield
    finally:
        _OPEN.reset(token)


def current() -> Work | None:
    """The work of the phase that is open; None where nobody counts."""
    found = _OPEN.get()
    return None if found is None else found[0][found[1]]


@dataclass(frozen=True)
class Passage:
    """What one kind of forward costs: for each position, and for each pair of tokens of which one attends to the other.

    Attributes:
        position: operations of linear layers, forward and backward. pair: those of attention.
    """

    position: int
    pair: int


_PASSAGES: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple[Any, ...], Passage]] = weakref.WeakKeyDictionary()


@contextmanager
def trunk_pass(
    model: PreTrainedModel, *, positions: int, pairs: Callable[[], int], held: int, part: str = ""
) -> Iterator[None]:
    """Count a forward of the trunk, and the backward that follows if gradients are on.

    Args:
        model: the backbone, its adapters on.
        positions: that linear layers run on.
        pairs: after the forward, the queries times keys that attention computed, all rows together; of layers that
            compute different ones, of those that compute most.
        held: positions that hold a token.
        part: tells forwards of some layers only from those of all.
    """
    work = current()
    if work is None:
        yield
        return
    worn = next((tuple(m.active_adapters) for m in model.modules() if isinstance(m, LoraLayer)), ())
    recomputes = model.training and _checkpoints(model)
    kind = (part, worn, torch.is_grad_enabled(), recomputes)
    known = _PASSAGES.setdefault(model, {})
    if kind in known:
        yield
    else:
        with _watched(model.get_decoder()) as seen:
            yield
        known[kind] = _passage(seen, recomputes=recomputes)
    work.flops += known[kind].position * positions + known[kind].pair * pairs()
    work.positions += positions
    work.held += held


def _checkpoints(model: PreTrainedModel) -> bool:
    """Whether activations are recomputed in backward; all modules that can are told the same, so the first knows."""
    name = "gradient_checkpointing"
    return bool(next((getattr(module, name) for module in model.modules() if hasattr(module, name)), False))


def count_head(hidden: Tensor, weight: Tensor, entropy: Tensor) -> None:
    """Count the output head: the products that ``token_logprobs`` makes in forward and backward.

    Args:
        hidden: [M, D] that it was applied to. weight: [V, D]. entropy: [M] that it gave.
    """
    work = current()
    if work is None:
        return
    product = 2 * weight.numel() * len(hidden)
    work.flops += product
    if not torch.is_grad_enabled():
        return
    if weight.requires_grad:
        work.flops += product * (2 + hidden.requires_grad)  # logits again, and the gradients of weight and states
    elif hidden.requires_grad:
        work.flops += product

        def count_entropy(gradient: Tensor | None) -> None:
            if gradient is not None:
                work.flops += 2 * product  # logits again, and another gradient of the states

        entropy.register_hook(count_entropy)


def count_merge(layer: nn.Module, ranks: Sequence[int]) -> None:
    """Count the products that add adapters of these ranks to a layer's weight."""
    work = current()
    if work is not None:
        work.flops += 2 * matrix_size(layer) * sum(ranks)


class StepCount:
    """Counts the steps of the sampler, each one forward of a token for every live slot and of whole prompts."""

    def __init__(self, model: PreTrainedModel, ledger: Ledger) -> None:
        """Measure a model as it is: adapters that are on cost in every step."""
        self._ledger = ledger
        self._body = Anatomy.of(model)
        self._worn = 2 * sum(a + b for _, m in linear_modules(model.get_decoder()) for a, b, _ in _adapters(m))

    @classmethod
    def opened(cls, model: PreTrainedModel) -> StepCount | None:
        """For the phase that is open; None where nobody counts."""
        found = _OPEN.get()
        return None if found is None else cls(model, found[0])

    def add(
        self, contexts: Sequence[int], prompts: Sequence[int], *, keys: int, seconds: float, slots: int | None = None
    ) -> None:
        """Count one step, as phases ``prefill`` and ``decode``.

        Args:
            contexts: tokens that the token of each live slot attends to, itself included.
            prompts: tokens of each prompt.
            keys: that attention reads for each slot. seconds: that the step took.
            slots: that the step carried, live or not; None is the live ones.
        """
        prefill, decode, body = Work(), Work(), self._body
        if prompts:
            total, count = sum(prompts), len(prompts)
            squares = sum(n * n for n in prompts)
            prefill.tokens = prefill.positions = prefill.held = total
            prefill.flops = body.forward(total, lambda _: squares, count) + self._worn * total
            prefill.ideal_flops = body.forward(total, lambda window: sum(seen(0, n, window) for n in prompts), count)
        if contexts:
            live, carried = len(contexts), len(contexts) if slots is None else slots
            decode.tokens, decode.held, decode.positions = live, live, carried
            decode.flops = body.forward(carried, lambda _: carried * keys, carried) + self._worn * carried
            decode.ideal_flops = body.forward(live, lambda window: sum(_cut(n, window) for n in contexts), live)
            decode.steps = {live: [decode.ideal_flops, body.step_bytes(sum(contexts))]}
        both = max(prefill.flops + decode.flops, 1)
        for phase, part in (("prefill", prefill), ("decode", decode)):
            if part.flops:
                part.seconds = seconds * part.flops / both
                self._ledger[phase].add(part)


def seen(start: int, stop: int, window: int | None = None) -> int:
    """How many tokens the tokens ``start`` to ``stop`` of a sequence see, themselves included, summed."""
    if window is None or stop <= window:
        return (stop * (stop + 1) - start * (start + 1)) // 2
    cut = max(start, window)
    return seen(start, cut) + (stop - cut) * window


def _cut(length: int, window: int | None) -> int:
    return length if window is None else min(length, window)


@dataclass(frozen=True)
class _Product:
    """A linear layer that a forward went through.

    Attributes:
        layer: its number. size: inputs times outputs. inside: the attention that it is part of.
        width: of its input. needs: whether its input takes a gradient. trains: whether its weight does.
        adapters: of each one that is on, the sizes of its two matrices and whether they train.
        late: whether recomputing a layer that ends with it makes it again.
    """

    layer: int | None
    size: int
    inside: str
    width: int
    needs: bool
    trains: bool
    adapters: tuple[tuple[int, int, bool], ...]
    late: bool


@contextmanager
def _watched(decoder: nn.Module) -> Iterator[list[_Product]]:
    """The linear layers that a forward within the context goes through, in order."""
    found: list[_Product] = []
    attentions = {name for name, module in decoder.named_modules() if hasattr(module, "layer_idx")}

    def watch(name: str, module: nn.Module) -> Any:
        inside = next((part for part in _parents(name) if part in attentions), "")

        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            states = inputs[0]
            found.append(
                _Product(
                    layer=layer_number(name),
                    size=matrix_size(module),
                    inside=inside,
                    width=int(states.shape[-1]),
                    needs=torch.is_grad_enabled() and states.requires_grad,
                    trains=torch.is_grad_enabled() and weight_of(module).requires_grad,
                    adapters=tuple(_adapters(module)),
                    late=keeps_afterwards(module, states),
                )
            )

        return module.register_forward_pre_hook(look)

    handles = [watch(name, module) for name, module in linear_modules(decoder)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _parents(name: str) -> Iterator[str]:
    """The modules that a module is in, innermost first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))


def _adapters(module: nn.Module) -> Iterator[tuple[int, int, bool]]:
    """Of each adapter that is on: the sizes of its two matrices, and whether they take gradients."""
    if isinstance(module, LoraLayer):
        for name in module.active_adapters:
            if name in module.lora_A:
                first, second = weight_of(module.lora_A[name]), weight_of(module.lora_B[name])
                yield first.numel(), second.numel(), first.requires_grad and torch.is_grad_enabled()


def _passage(products: Sequence[_Product], *, recomputes: bool) -> Passage:
    """The cost of a forward that went through these, and of its backward.

    Where activations are recomputed, every layer that takes part in the backward is run forward twice.
    """
    takes_part = {p.layer for p in products if p.needs or p.trains or any(trains for _, _, trains in p.adapters)}
    last = {product.layer: product for product in products}
    position = 0
    exits: dict[str, _Product] = {}
    for product in products:
        forward = 2 * product.size + 2 * sum(a + b for a, b, _ in product.adapters)
        again = recomputes and product.layer is not None and product.layer in takes_part
        if product is last[product.layer] and not product.adapters and not product.late:
            again = False  # recomputing ends where no result is needed any more
        position += forward * (1 + again) + _backward(product)
        if product.inside:
            exits[product.inside] = product  # what runs last inside attention multiplies its result
    pair = 0
    for product in exits.values():
        again = recomputes and product.layer in takes_part
        # five products in backward, where scores are made again, for two in forward
        pair += product.width * (4 * (1 + again) + 10 * product.needs)
    return Passage(position, pair)


def _backward(product: _Product) -> int:
    """Gradients of a linear layer's input and weight, and of its adapters'."""
    flops = 2 * product.size * (product.needs + product.trains)
    for first, second, trains in product.adapters:
        if trains:  # both matrices, and the state between them
            flops += 2 * first + 4 * second
        elif product.needs:
            flops += 2 * second
        flops += 2 * first * product.needs
    return flops
