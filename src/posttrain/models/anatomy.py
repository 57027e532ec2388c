"""What one pass of a model must cost at least: the limits of arithmetic and memory that a run is measured against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Self

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a trunk.

    Attributes:
        linear: weights that are multiplied with every token. trained: those of them that train.
        adapters: weights of adapters that train. attention: heads times head size; 0 without attention.
        keys: numbers that a token keeps in the cache, keys and values. window: tokens that a token sees; None is all.
    """

    linear: int = 0
    trained: int = 0
    adapters: int = 0
    attention: int = 0
    keys: int = 0
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a model and of what trains in it, from which the fewest floating point operations follow.

    A forward of n tokens of which m need logits costs 2 N n + 4 L a s + 2 H m: N the trunk's matrices, H the output
    head's, a the width of attention, s how many tokens each of the n sees, summed. Training costs twice that for
    frozen weights above the lowest one that trains (attention: three times), and 6 n for every weight that trains.

    Attributes:
        layers: bottom first. outside: weights of linear layers that belong to no layer.
        head: weights of the output head. head_trains: whether they train.
        lowest: number of the lowest layer in which something trains; None where nothing does.
        weight_bytes: of all these weights together. number_bytes: of one number in the cache.
    """

    layers: tuple[Layer, ...]
    outside: int = 0
    head: int = 0
    head_trains: bool = False
    lowest: int | None = None
    weight_bytes: int = 0
    number_bytes: int = 4

    @classmethod
    def of(cls, model: PreTrainedModel, trained: Collection[int] = ()) -> Self:
        """Read from a model's modules; ``trained`` are the ids of parameters that train."""
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        config = model.config.get_text_config()
        sizes: dict[int | None, list[int]] = {}
        for name, module in linear_modules(decoder):
            size = sizes.setdefault(layer_number(name), [0, 0, 0])
            size[0] += matrix_size(module)
            size[1] += matrix_size(module) * (id(weight_of(module)) in trained)
            if isinstance(module, LoraLayer):
                matrices = [weight_of(m) for table in (module.lora_A, module.lora_B) for m in table.values()]
                size[2] += sum(matrix.numel() for matrix in matrices if id(matrix) in trained)
        outside = sizes.pop(None, [0, 0, 0])
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            layers=tuple(
                Layer(
                    linear=size[0],
                    trained=size[1],
                    adapters=size[2],
                    attention=heads * width,
                    keys=2 * kv_heads * width,
                    window=_window(config, number),
                )
                for number, size in sorted(sizes.items(), key=lambda item: item[0] or 0)
            ),
            outside=outside[0],
            head=0 if head is None else int(head.weight.numel()),
            head_trains=head is not None and id(head.weight) in trained,
            lowest=_lowest(decoder, trained),
            weight_bytes=sum(weight_of(m).nbytes for _, m in linear_modules(decoder))
            + (0 if head is None else weight_of(head).nbytes),
            number_bytes=weight_of(model.get_input_embeddings()).element_size(),
        )

    def above(self, number: int) -> Self:
        """The layers from ``number`` on, and the head."""
        lowest = None if self.lowest is None else max(self.lowest - number, 0)
        return replace(self, layers=self.layers[number:], lowest=lowest)

    def below(self, number: int) -> Self:
        """The layers beneath ``number`` alone."""
        return replace(self, layers=self.layers[:number], head=0, head_trains=False, lowest=None)

    @property
    def trunk(self) -> int:
        """N, weights that every token is multiplied with."""
        return self.outside + sum(layer.linear for layer in self.layers)

    def attention(self, seen: Callable[[int | None], int], *, above: int = 0) -> int:
        """Scores and weighted values from layer ``above`` on; ``seen(window)`` is s, tokens seen by each, summed."""
        layers = self.layers[above:]
        by_window = {window: seen(window) for window in {layer.window for layer in layers}}
        return sum(4 * layer.attention * by_window[layer.window] for layer in layers)

    def forward(self, tokens: int, seen: Callable[[int | None], int], targets: int) -> int:
        """One forward."""
        return 2 * self.trunk * tokens + self.attention(seen) + 2 * self.head * targets

    def training(self, tokens: int, seen: Callable[[int | None], int], targets: int) -> int:
        """Forward and backward."""
        whole = self.forward(tokens, seen, targets)
        if self.head_trains:
            whole += 2 * self.head * targets
        if self.lowest is None:
            return whole
        above = self.layers[self.lowest :]
        states = sum(2 * layer.linear for layer in above) + 2 * self.outside
        weights = sum(2 * layer.trained + 6 * layer.adapters for layer in above)
        backward = 2 * self.attention(seen, above=self.lowest) + 2 * self.head * targets
        return whole + (states + weights) * tokens + backward

    def step_bytes(self, contexts: int) -> int:
        """Bytes that a decode step reads: every weight once, and the keys and values of the live slots.

        Args:
            contexts: tokens of all live slots together.
        """
        kept = sum(layer.keys for layer in self.layers)
        return self.weight_bytes + contexts * kept * self.number_bytes


def linear_modules(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers of a trunk by name; one that carries adapters is one, and what is inside it is none."""
    for name, module in decoder.named_modules():
        inside = name.endswith(".base_layer") or ".lora_" in name
        if isinstance(module, LoraLayer) or (isinstance(module, nn.Linear | Conv1D) and not inside):
            assert isinstance(module, nn.Module)
            yield name, module


def base_of(module: nn.Module) -> nn.Module:
    """The layer itself, beneath its adapters."""
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    assert isinstance(base, nn.Module)
    return base


def weight_of(module: nn.Module) -> Tensor:
    """The weight of the layer itself."""
    weight = base_of(module).weight
    assert isinstance(weight, Tensor)
    return weight


def matrix_size(module: nn.Module) -> int:
    """Inputs times outputs; quantised weights are stored otherwise."""
    base = base_of(module)
    if isinstance(base, Conv1D):
        return int(base.weight.numel())
    return int(base.in_features) * int(base.out_features)  # type: ignore[arg-type]


def layer_number(name: str) -> int | None:
    """The layer that a module or parameter belongs to, by its name; None for what is outside."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _lowest(decoder: nn.Module, trained: Collection[int]) -> int | None:
    """The lowest layer in which something trains; embeddings are beneath all of them."""
    found = [layer_number(name) for name, parameter in decoder.named_parameters() if id(parameter) in trained]
    embeddings = [m.weight for m in decoder.modules() if isinstance(m, nn.Embedding)]
    if any(id(weight) in trained for weight in embeddings):
        return 0
    return min((number for number in found if number is not None), default=None)


def _window(config: object, number: int | None) -> int | None:
    """The sliding window of a layer."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and number is not None and number < len(kinds):
        return getattr(config, "sliding_window", None) if kinds[number] == "sliding_attention" else None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
