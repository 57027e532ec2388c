"""A frozen base in 4 or 8 bits through bitsandbytes, under adapters that train in float32."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.config import ModelConfig
from posttrain.errors import UserError
from posttrain.models.lineage import fingerprint, remember_fingerprint

MARK = "posttrain_quantized"
"""Attribute of a model whose linear layers are quantised: a sentence that says how."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the linear layers of a frozen model are stored.

    Attributes:
        bits: 4 or 8. kind: code book of 4 bits. double: 4 bits: the scales of the blocks are quantised, too.
    """

    bits: Literal[4, 8]
    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True

    @classmethod
    def configured(cls, model: ModelConfig) -> Quantization | None:
        """What the keys ask for; None is a model loaded as it is."""
        return cls.of_bits(model, model.quantization_bit)

    @classmethod
    def of_bits(cls, model: ModelConfig, bits: int | None) -> Quantization | None:
        """The same, with another number of bits."""
        if bits is None:
            return None
        return cls(bits=4 if bits == 4 else 8, kind=model.quantization_type, double=model.double_quantization)

    def __str__(self) -> str:
        if self.bits == 8:
            return "8 bits (int8)"
        return f"4 bits ({self.kind}{', double quantisation' if self.double else ''})"


class Int8Linear(nn.Linear):
    """A linear layer whose weight is kept as bitsandbytes' int8 rows with one scale each.

    y = x (diag(s / 127) C)ᵀ + b, computed in the dtype of x. bitsandbytes' own layer quantises x as well, and takes
    columns with outliers out of it, chosen over the whole batch: an answer would then depend on the rows beside it, and
    sampling, scoring and training would disagree.

    Attributes:
        weight: [out, in] int8, C. scales: [out] float32, s.
    """

    scales: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, library: Any) -> None:
        """Quantise a weight [out, in]; ``library`` is bitsandbytes."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        codes, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales.float())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] the weight as it is computed with."""
        return _from_int8(self.weight, self.scales, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [..., in]. Returns: [..., out] of the same dtype."""
        product: Tensor = _Int8Product.apply(x, self.weight, self.scales)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _Int8Product(torch.autograd.Function):
    """x Wᵀ with W made anew in the backward pass: what stays in memory between the two is the int8 weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return F.linear(x, _from_int8(codes, scales, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        codes, scales = ctx.saved_tensors
        return gradient @ _from_int8(codes, scales, gradient.dtype), None, None


def _from_int8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() * (scales / 127.0)[:, None]).to(dtype)


def quantization(model: nn.Module) -> str | None:
    """How the model's linear layers are quantised, in words; None where they are not."""
    return getattr(model, MARK, None)


def is_quantized(model: nn.Module) -> bool:
    """Whether linear layers of the model are quantised, so that nothing can be added to their weights."""
    return quantization(model) is not None


def bitsandbytes(wanted_by: str = "quantization_bit") -> Any:
    """The library.

    Args:
        wanted_by: the key that needs it, as the message names it.

    Raises:
        UserError: it is not installed, or does not work on this machine.
    """
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # native code that does not fit the machine fails in ways of its own
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise UserError(
            f"{wanted_by} needs bitsandbytes, which {what}. Run `pip install bitsandbytes`, or remove the line."
        ) from error


def quantize(model: PreTrainedModel, how: Quantization, device: torch.device, dtype: torch.dtype) -> None:
    """Replace every linear layer but the output head by a quantised one and move the model to its device.

    The model's fingerprint stays that of its unquantised weights, which is what adapters are trained on and exported
    with.

    Args:
        model: frozen, on the CPU, in the dtype that its weights are stored in.
        how: bits and code book.
        device: where it will run.
        dtype: of everything that stays unquantised, and of the computation.

    Raises:
        UserError: bitsandbytes is missing, or the model has no linear layer.
    """
    library = bitsandbytes()
    remember_fingerprint(model, fingerprint(model))
    head = model.get_output_embeddings()
    places = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if not places:
        raise UserError(f"quantization_bit: {type(model).__name__} has no linear layers to quantise; remove the key")
    for place in places:
        layer: Any = model.get_submodule(place)
        weight = layer.weight.data if isinstance(layer, nn.Linear) else layer.weight.data.T.contiguous()
        bias = None if layer.bias is None else layer.bias.data.to(device, dtype)
        model.set_submodule(place, _quantized(weight.to(device), bias, how, dtype, library), strict=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else parameter.dtype)
    for buffer in model.buffers():  # rotary frequencies and the like are float32 in every precision
        buffer.data = buffer.data.to(device)
    setattr(model, MARK, str(how))
    model.requires_grad_(False)


def _quantized(weight: Tensor, bias: Tensor | None, how: Quantization, dtype: torch.dtype, library: Any) -> nn.Linear:
    """One layer; weight: [out, in]."""
    if how.bits == 8:
        return Int8Linear(weight, bias, library)
    rows, columns = weight.shape
    with torch.device("meta"):
        layer: Any = library.nn.Linear4bit(columns, rows, bias=False, compute_dtype=dtype)
    kept = library.nn.Params4bit(
        weight, requires_grad=False, quant_type=how.kind, compress_statistics=how.double, module=layer
    )
    layer.weight = kept.to(weight.device)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    # else evaluation on some CPUs repacks the weights and computes in bfloat16, and training then differs from sampling
    layer.support_avx512bf16_for_cpu = False
    return layer  # type: ignore[no-any-return]
