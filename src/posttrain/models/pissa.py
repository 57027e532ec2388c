"""PiSSA: an adapter that starts from the largest singular vectors of each weight, and its way back to plain LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import UserError
from posttrain.models.adapters import adapter_state, lora_layers


@torch.no_grad()
def start_from_singular_vectors(model: PreTrainedModel, name: str, iterations: int) -> dict[str, Tensor]:
    """Fill a fresh LoRA adapter, and take what it says out of the base weights in memory.

        W = U S Vᵀ,  B = U_r √S_r / √s,  A = √S_r V_rᵀ / √s,  W ← W − s B A

    with s the scale of the adapter, so that the model is the same as before, up to rounding.

    Paper: Meng et al., 2024, eq. 2 to 4 (arXiv:2404.02948).

    Args:
        model: its base weights change.
        name: of the adapter.
        iterations: of the randomised decomposition (Halko et al., 2011); -1 decomposes exactly. It is computed on the
            CPU with a generator of its own, so that a resumed run starts from the same.

    Returns:
        The adapter's weights under peft's keys, which ``on_the_original`` needs.

    Raises:
        UserError: a layer has fewer singular vectors than the rank.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer: Any
        for layer in lora_layers(model):
            if name not in layer.lora_A:
                continue
            parameter: Any = layer.get_base_layer().weight
            weight = parameter.detach().float().cpu()
            weight = weight.T if layer.fan_in_fan_out else weight  # [out, in]
            rank, scale = layer.r[name], layer.scaling[name]
            if rank > min(weight.shape):
                raise UserError(
                    f"pissa_init: `lora_rank: {rank}` is more than the {min(weight.shape)} singular vectors of a layer "
                    f"of {weight.shape[0]} x {weight.shape[1]} (such as k_proj with few key heads); give at most "
                    f"{min(weight.shape)}, or name larger layers in lora_target"
                )
            left, values, right = _decomposed(weight, rank, iterations)
            root = (values / scale).sqrt()
            layer.lora_B[name].weight.copy_(left * root)
            layer.lora_A[name].weight.copy_(root[:, None] * right.T)
            parameter.copy_(parameter.float() - layer.get_delta_weight(name).float())
    return {key: tensor.clone() for key, tensor in adapter_state(model, name).items()}


def on_the_original(
    config: LoraConfig, state: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same model as plain LoRA on the base as it was: twice the rank, the start subtracted.

        W − s B₀A₀ + s B A  =  W + s [B, −B₀] [A; A₀]

    Args:
        config: of the adapter that trained.
        state: as it is. initial: as it started.

    Returns:
        Configuration and weights, as ``write_adapter`` takes them.
    """
    joined: dict[str, Tensor] = {}
    for key, tensor in state.items():
        start = initial[key].to(tensor.dtype)
        joined[key] = torch.cat([tensor, -start], dim=1) if ".lora_B." in key else torch.cat([tensor, start], dim=0)
    root = config.r**0.5 if config.use_rslora else config.r
    alpha = config.lora_alpha * 2 * config.r / root
    whole: Any = int(alpha) if float(alpha).is_integer() else alpha
    plain = dataclasses.replace(config, r=2 * config.r, lora_alpha=whole, use_rslora=False, init_lora_weights=True)
    return plain, joined


def saved_form(config: LoraConfig, dtype: torch.dtype) -> tuple[str, ...]:
    """Sentences about what will be saved."""
    notes = (
        f"pissa_init: what is saved is plain LoRA of rank {2 * config.r}, twice the rank that trains, on the base as "
        "it is; it loads everywhere and says the same.",
    )
    if dtype == torch.float32:
        return notes
    name = str(dtype).removeprefix("torch.")
    return (*notes, f"pissa_init: the rest of each weight is rounded to {name}, so that it says the same up to that.")


def _decomposed(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, r], S [r], V [in, r] of the largest singular values."""
    if iterations < 0:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].T
    found: tuple[Tensor, Tensor, Tensor] = torch.svd_lowrank(weight, q=rank, niter=iterations)
    return found
