"""Which way to compute packed attention: chosen by device, precision and plan, tried before it is trusted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.attention_flex import flex_attention, flex_refusal
from posttrain.models.attention_segments import segment_attention
from posttrain.models.attention_terms import Layout, Terms
from posttrain.models.attention_tiles import tile_attention
from posttrain.models.attention_varlen import varlen_attention, varlen_refusal

# Tiles leave threads to the matrix products, which a fused kernel shares out better among many.
MOST_TILE_THREADS = 4
# How far, relative to its size, a result may be from the fallback's; half precision rounds each weight.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def tile_refusal(plan: Layout, query: Tensor, terms: Terms) -> str:
    """Why tiles do not take this call; "" where they do."""
    if query.device.type != "cpu":
        return f"tiles are made for a CPU's cache, not for {query.device.type}"
    if query.dtype not in (torch.float32, torch.float64):
        return f"tiles take float32 and float64, not {query.dtype}"
    return ""


def segment_refusal(plan: Layout, query: Tensor, terms: Terms) -> str:
    """Segment by segment always works."""
    return ""


Attend = Callable[[Layout, Tensor, Tensor, Tensor, Terms], Tensor]


class Backend(NamedTuple):
    """One way to compute packed attention, and why it does not take a call."""

    attend: Attend
    refusal: Callable[[Layout, Tensor, Terms], str]


BACKENDS = {
    "tiles": Backend(tile_attention, tile_refusal),
    "varlen": Backend(varlen_attention, varlen_refusal),
    "flex": Backend(flex_attention, flex_refusal),
    "sdpa": Backend(segment_attention, segment_refusal),
}
FALLBACK = "sdpa"


def default_backends(device: torch.device) -> tuple[str, ...]:
    """The backends for a device, best first; the last one takes every call."""
    if device.type == "cuda":
        return ("varlen", FALLBACK)  # FlexAttention has not been seen running for long: only where asked for
    if device.type == "cpu" and torch.get_num_threads() <= MOST_TILE_THREADS:
        return ("tiles", FALLBACK)
    return (FALLBACK,)


def attended(
    plan: Layout, query: Tensor, key: Tensor, value: Tensor, terms: Terms, backends: tuple[str, ...] = ()
) -> Tensor:
    """Attention by the first backend that takes the call.

    Args:
        backends: names, best first; () is what needs no trial on this device.
    """
    untried = () if query.device.type == "cuda" else default_backends(query.device)
    for name in backends or untried:
        backend = BACKENDS[name]
        if not backend.refusal(plan, query, terms):
            return backend.attend(plan, query, key, value, terms)
    return segment_attention(plan, query, key, value, terms)


def usable(model: PreTrainedModel, plans: Sequence[Layout], wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Those of the wanted backends that give what the fallback gives, forward and backward, with the model's heads.

    A backend that fails or differs is left out with a warning that says why, and one that was asked for by name also
    where it does not take such calls at all; the fallback is always there.

    Args:
        model: decides device, precision and heads.
        plans: who attends to whom in the trial; a backend has to take one of them.
        wanted: names, best first; () is the default of the device.
    """
    if getattr(model.config.get_text_config(), "num_attention_heads", None) is None:
        return (FALLBACK,)  # a model without attention
    found = []
    for name in wanted or default_backends(next(model.parameters()).device):
        if name == FALLBACK:
            break
        reason, fails = _trial(model, plans, BACKENDS[name])
        if reason and (fails or wanted):
            warnings.warn(f"attention by {name} is not used ({reason}).", stacklevel=3)
        if not reason:
            found.append(name)
    return (*found, FALLBACK)


def _trial(model: PreTrainedModel, plans: Sequence[Layout], backend: Backend) -> tuple[str, bool]:
    """Why a backend cannot be used with this model, "" where it can, and whether it broke rather than declined."""
    declined = ""
    for plan in plans:
        try:
            inputs = _inputs(model, plan)
            terms = Terms(scale=inputs[0].shape[-1] ** -0.5)
            declined = backend.refusal(plan, inputs[0], terms)
            if declined:
                continue
            mine = _results(backend.attend, plan, inputs, terms)
        except Exception as error:  # compilers and kernels fail with classes of their own
            said = str(error).strip() or "no message"
            return f"{type(error).__name__}: {said.splitlines()[0]}", True
        half = model.dtype in (torch.bfloat16, torch.float16)
        for x, y in zip(mine, _results(segment_attention, plan, inputs, terms), strict=True):
            gap = float((x - y).float().norm() / y.float().norm())
            if not gap <= (HALF_TOLERANCE if half else TOLERANCE):
                return f"it differs from the exact result by {gap:.2g}", True
        return "", False
    return declined, False


def _inputs(model: PreTrainedModel, plan: Layout) -> list[Tensor]:
    """Random query, key and value as the model's layers hand them over."""
    config, parameter = model.config.get_text_config(), next(model.parameters())
    heads = int(config.num_attention_heads)
    pairs = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(1, plan.num_tokens, n, size, generator=generator) for n in (heads, pairs, pairs))
    return [x.transpose(1, 2).to(parameter.device, model.dtype).requires_grad_() for x in numbers]


def _results(attend: Attend, plan: Layout, inputs: Sequence[Tensor], terms: Terms) -> list[Tensor]:
    """What comes out, and the gradients of its squares."""
    with torch.enable_grad():
        query, key, value = inputs
        out = attend(plan, query, key, value, terms)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]
