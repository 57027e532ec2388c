"""Log-probabilities and entropies of tokens straight from hidden states, without the matrix of all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.functional.products import add_product, product, product_into

# Element-wise work goes over row blocks that stay in a CPU's cache: a pass over memory costs as much as a thin product.
_BLOCK_ELEMENTS = 1 << 18


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 256,
    temperature: float = 1.0,
    logit_scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, ``chunk_size`` rows of logits at a time.

        z = softcap(logit_scale (h Wᵀ + b)) / temperature        softcap(x) = c tanh(x / c)
        log p(y) = z_y − logsumexp(z)        H = logsumexp(z) − Σ_v p_v z_v

    Neither forward nor backward holds [N, V]. With a frozen head the gradient direction of each row,
    ∂ log p(y) / ∂h = W_y − Σ_v p_v W_v without scale and cap, is made while its chunk is there and kept as [N, D]: two
    matrix products in all, none of them in backward. With a trainable head, or where the entropy receives a gradient,
    backward makes the logits again chunk by chunk.

    Args:
        hidden: [N, D] the states that predict the targets (already shifted).
        weight: [V, D] of the output layer.
        targets: [N] int64, each in [0, V).
        bias: [V] or None.
        chunk_size: rows of logits that are held at once.
        temperature: divides the logits, above 0.
        logit_scale: multiplies the logits before the soft-cap; None is 1.
        softcap: the bound c; None is none.

    Returns:
        Log-probabilities [N], never positive, and entropies [N] in nats; float32 (float64 for float64 weights).

    Raises:
        ValueError: if shapes disagree, or the temperature, the soft-cap or the chunk size is not positive.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} must be [{hidden.shape[0]}]: one per row of hidden")
    if temperature <= 0 or chunk_size < 1 or (softcap is not None and softcap <= 0):
        raise ValueError(f"must be positive: {temperature=}, {chunk_size=}, {softcap=}")
    head_trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    head = _Head(
        chunk_size=chunk_size,
        temperature=float(temperature),
        logit_scale=1.0 if logit_scale is None else float(logit_scale),
        softcap=softcap,
        head_trains=head_trains,
        direction=torch.is_grad_enabled() and hidden.requires_grad and not head_trains,
    )
    logprobs, entropy = _TokenLogprobs.apply(hidden, weight, bias, targets, head)  # type: ignore[no-untyped-call]
    return logprobs, entropy


@torch.no_grad()
def most_probable(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 256,
    logit_scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether no token is more probable; without gradients.

        hit = 1[z_y = max_v z_v]

    Args:
        hidden, weight, targets, bias, chunk_size, logit_scale, softcap: as for ``token_logprobs``.

    Returns:
        Log-probabilities [N], those of ``token_logprobs``, and hits [N] bool.
    """
    head = _Head(
        chunk_size=chunk_size,
        temperature=1.0,
        logit_scale=1.0 if logit_scale is None else float(logit_scale),
        softcap=softcap,
        head_trains=False,
        direction=False,
    )
    logprobs = torch.empty(len(hidden), dtype=_accumulation_dtype(weight), device=hidden.device)
    hits = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    for rows, logits in head.chunks(hidden, weight, bias):
        head.cap(logits)
        chosen = logits.gather(1, targets[rows, None])[:, 0]
        hits[rows] = chosen == logits.amax(dim=1)
        logprobs[rows] = chosen - logits.logsumexp(dim=1)
    return logprobs, hits


class _Head(NamedTuple):
    """What happens between the product with the weight and the softmax, and which gradient is prepared."""

    chunk_size: int
    temperature: float
    logit_scale: float
    softcap: float | None
    head_trains: bool
    direction: bool

    @property
    def slope(self) -> float:
        """∂z / ∂(h Wᵀ + b), up to the soft-cap's own 1 − tanh²."""
        return self.logit_scale / self.temperature

    def chunks(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their raw logits; the same buffer again and again, free to be overwritten."""
        dtype = _accumulation_dtype(weight)
        # Scaling [C, D] is free where scaling [C, V] is one more pass; tanh wants its argument ready.
        factor = self.slope if self.softcap is None else self.logit_scale / self.softcap
        shift = None if bias is None else bias.to(dtype) * factor
        buffer = torch.empty(min(self.chunk_size, len(hidden)), len(weight), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), self.chunk_size):
            rows = slice(start, min(start + self.chunk_size, len(hidden)))
            states = hidden[rows] if factor == 1 else hidden[rows] * factor
            logits = buffer[: rows.stop - rows.start]
            if weight.dtype == dtype:
                product_into(logits, states.to(dtype), weight.T)
            else:
                logits.copy_(states.to(weight.dtype) @ weight.T)
            if shift is not None:
                logits.add_(shift)
            yield rows, logits

    def cap(self, logits: Tensor) -> Tensor | None:
        """Finish the logits in place; the soft-cap's own derivative, or None without one."""
        if self.softcap is None:
            return None
        logits.tanh_()
        derivative = 1 - logits.square()
        logits.mul_(self.softcap / self.temperature)
        return derivative


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: _Head
    ) -> tuple[Tensor, Tensor]:
        dtype = _accumulation_dtype(weight)
        logprobs, entropy, normaliser = (torch.empty(len(hidden), dtype=dtype, device=hidden.device) for _ in range(3))
        direction = torch.empty_like(hidden) if head.direction else None
        for rows, logits in head.chunks(hidden, weight, bias):
            for block in _blocks(rows, logits):
                _measure(head, logits[block.local], targets[block.rows], block.rows, logprobs, entropy, normaliser)
            if direction is not None:
                mean = product(logits.to(weight.dtype), weight)  # [C, D], Σ_v p_v W_v
                chosen = weight[targets[rows]]
                if head.softcap is not None:
                    target_logits = logprobs[rows] + normaliser[rows]
                    chosen = chosen * (1 - (target_logits * head.temperature / head.softcap).square())[:, None]
                direction[rows] = head.slope * (chosen - mean)
        ctx.set_materialize_grads(False)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy, direction)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, normaliser, entropy, direction = ctx.saved_tensors
        if grad_entropy is not None and not grad_entropy.any():
            grad_entropy = None
        if grad_logprobs is None and grad_entropy is None:
            return None, None, None, None, None
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        if direction is not None and grad_entropy is None:
            return grad_logprobs[:, None].to(direction.dtype) * direction, None, None, None, None
        statistics = (normaliser, entropy)
        return (
            *_recomputed(ctx, (hidden, weight, bias, targets), statistics, grad_logprobs, grad_entropy),
            None,
            None,
        )


class _Block(NamedTuple):
    """A few rows: where they stand in the chunk, and where among all N."""

    local: slice
    rows: slice


def _blocks(rows: slice, logits: Tensor) -> Iterator[_Block]:
    size = max(1, _BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), size):
        stop = min(start + size, len(logits))
        yield _Block(slice(start, stop), slice(rows.start + start, rows.start + stop))


def _measure(
    head: _Head, logits: Tensor, targets: Tensor, rows: slice, logprobs: Tensor, entropy: Tensor, normaliser: Tensor
) -> None:
    """Fill the three columns for ``rows``; for a direction, turn ``logits`` into ∂ logsumexp / ∂ product, unscaled."""
    derivative = head.cap(logits)
    peak = logits.amax(dim=1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None]) - peak
    shifted = logits - peak
    torch.exp(shifted, out=logits)
    total = logits.sum(dim=1)
    log_total = total.log()
    logprobs[rows] = target_logits[:, 0] - log_total
    normaliser[rows] = peak[:, 0] + log_total
    entropy[rows] = log_total - shifted.mul_(logits).sum(dim=1) / total
    if head.direction:
        logits.div_(total[:, None])
        if derivative is not None:
            logits.mul_(derivative)


def _recomputed(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor],
    statistics: tuple[Tensor, Tensor],
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias from logits that are made again, chunk by chunk.

    ∂/∂z_v = g_lp (1[v = y] − p_v) − g_H p_v (log p_v + H)
    """
    hidden, weight, bias, targets = inputs
    normaliser, entropy = statistics
    head: _Head = ctx.head
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    dtype = _accumulation_dtype(weight)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=dtype) if wants_weight else None
    grad_bias = torch.zeros_like(bias, dtype=dtype) if wants_bias and bias is not None else None
    for rows, logits in head.chunks(hidden, weight, bias):
        for local, block in _blocks(rows, logits):
            z, g = logits[local], grad_logprobs[block, None]
            derivative = head.cap(z)
            log_p = z - normaliser[block, None]
            torch.exp(log_p, out=z)
            if grad_entropy is None:
                z.mul_(-g)
            else:
                z.mul_(log_p.add_(entropy[block, None]).mul_(grad_entropy[block, None]).add_(g).neg_())
            z.scatter_add_(1, targets[block, None], g)
            if derivative is not None:
                z.mul_(derivative)
        slopes = logits.to(weight.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = head.slope * product(slopes, weight)
        if grad_weight is not None:
            add_product(grad_weight, slopes.T, hidden[rows].to(weight.dtype), alpha=head.slope)
        if grad_bias is not None:
            grad_bias.add_(logits.sum(dim=0), alpha=head.slope)
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


def _accumulation_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
