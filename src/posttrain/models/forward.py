"""The one forward pass: packed trunk, heads on the tokens that count, and the shift that makes index t mean token t."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.functional import most_probable, token_logprobs
from posttrain.models.attention import NAME, register
from posttrain.models.attention_backends import usable
from posttrain.models.linears import quicken
from posttrain.models.logits import logit_scale
from posttrain.models.packing import packed
from posttrain.models.split import LowerPart, kept_states, lower, run_packed, upper
from posttrain.models.work import count_head, trunk_pass, uncounted
from posttrain.types import Batch, Outputs

# Two exact computations of the same attention differ by rounding only; real disagreement is orders larger.
PROBE_TOLERANCE = 1e-3
# Half precision rounds every number of a state by up to half an epsilon, layer upon layer: 1 to 4 of them in all, and
# far more in the largest of the numbers. A model that ignores positions or plan is off by half a state and more.
HALF_PROBE_EPSILONS = 16


def prepare_trunk(model: PreTrainedModel, backends: tuple[str, ...] = ()) -> bool:
    """Switch the model to packed attention where that is exact; else keep padded batches and say why.

    Exactness is tested, not assumed: short random sequences go through the model packed and padded. Before that each
    backend of attention that needs a kernel of its own is tried with the model's heads; one that fails is left out.

    Args:
        model: in the precision and on the device that it will run on.
        backends: of attention, best first; () is the default of the device.

    Returns:
        True when the trunk runs packed.
    """
    register()
    quicken(model)
    before = model.config._attn_implementation
    probe = _probe_batch(int(model.config.vocab_size))
    training = model.training
    model.eval()
    reason = ""
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            plans = [packed(probe.to(device), share_prefixes=shares) for shares in (True, False)]
            model.attention_backends = usable(model, plans, backends)  # type: ignore[assignment]
            padded_hidden, padded_index = trunk(model, probe.to(device))
            model.set_attn_implementation(NAME)
            hidden, index = trunk(model, probe.to(device))
            keep = probe.attention_mask.to(device)
            reason = _disagreement(hidden[index[keep]], padded_hidden[padded_index[keep]], model.dtype)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    if reason:
        model.set_attn_implementation(before)
        warnings.warn(
            f"{type(model).__name__} cannot run packed ({reason}); using padded batches, which is slower.", stacklevel=2
        )
    return not reason


def is_packed(model: PreTrainedModel) -> bool:
    """Whether the trunk runs on packed rows."""
    return bool(model.config._attn_implementation == NAME)


def runs_in_parts(model: PreTrainedModel, num_layers: int) -> bool:
    """Whether the trunk can be cut behind its first layers; says why where it cannot. Tested as packing is."""
    if not is_packed(model):
        return False
    plan = packed(_probe_batch(int(model.config.vocab_size)).to(next(model.parameters()).device))
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), uncounted():
            found = upper(model, plan, num_layers, lower(model, plan, num_layers))
            reason = _disagreement(found, run_packed(model, plan), model.dtype, "the parts' and the whole's")
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    if reason:
        warnings.warn(
            f"{type(model).__name__} cannot run in parts ({reason}); its {num_layers} lower layers are computed again "
            "in every pass, which is slower.",
            stacklevel=2,
        )
    return not reason


def trunk(model: PreTrainedModel, batch: Batch, below: LowerPart | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states of every real token after the last layer (and its norm).

    Args:
        model: the backbone, already wearing the right adapters.
        batch: [B, T].
        below: the part of it that does not run where the batch keeps its states.

    Returns:
        hidden [N, D] and index [B, T]: ``hidden[index[b, t]]`` is the state after token (b, t).
    """
    if is_packed(model):
        plan = packed(batch, backends=getattr(model, "attention_backends", ()))
        states = kept_states(batch, plan, below)
        if states is None or below is None:
            return run_packed(model, plan), plan.index
        return upper(model, plan, below.num_layers, states), plan.index
    decoder = model.get_decoder()
    width = batch.input_ids.shape[1]
    size, held = batch.input_ids.numel(), int(batch.attention_mask.sum())
    with trunk_pass(model, positions=size, pairs=lambda: size * width, held=held):
        out = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
    rows = torch.arange(len(batch), device=batch.input_ids.device)[:, None] * width
    index = rows + torch.arange(width, device=batch.input_ids.device)
    return out.last_hidden_state.flatten(0, 1), index


def answer(
    model: PreTrainedModel,
    heads: Mapping[str, nn.Module],
    batch: Batch,
    *,
    wants: tuple[str, ...],
    temperature: float = 1.0,
    below: LowerPart | None = None,
) -> Outputs:
    """Run the trunk once and let each wanted head answer.

    Args:
        model: the backbone, already wearing the right adapters.
        heads: name -> module mapping [M, D] to [M]; must hold "value" and "score" where wanted.
        batch: [B, T].
        wants: among "lm_head" (log-probabilities and entropy where ``loss_mask``), "value" (value of the state before
            each token where ``loss_mask``), "score" (at the last real token, see ``ScalarHead.ends``), "hits"
            (log-probabilities, and whether a token is the most probable one, where ``loss_mask``; no gradients).
        temperature: the policy's; logits are divided by it.
        below: the part of the trunk that does not run where the batch keeps its states.
    """
    hidden, index = trunk(model, batch, below)
    fields: dict[str, Any] = {}
    if {"lm_head", "value", "hits"} & set(wants):
        counted = batch.loss_mask.clone()
        counted[:, 0] = False  # nothing predicts the first token
        row, column = counted.nonzero(as_tuple=True)
        before = hidden[index[row, column - 1]]  # [M, D] the state that token (row, column) is drawn from
        if "lm_head" in wants:
            targets = batch.input_ids[row, column]
            logprobs, entropy = _language_head(model, before, targets, temperature)
            fields["logprobs"] = _table(batch, row, column, logprobs)
            fields["entropy"] = _table(batch, row, column, entropy)
        if "hits" in wants:
            found = _hits(model, before, batch.input_ids[row, column])
            fields["logprobs"], fields["hits"] = (_table(batch, row, column, values) for values in found)
        if "value" in wants:
            fields["values"] = _table(batch, row, column, heads["value"](before.float()))
    if "score" in wants:
        ends = getattr(heads["score"], "ends", None)
        column = ends(batch) if ends else batch.lengths - 1
        last = index[torch.arange(len(batch), device=index.device), column]
        fields["scores"] = heads["score"](hidden[last].float())
    return Outputs(**fields)


def _language_head(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, without ever holding [M, V]."""
    weight, shape = _head(model)
    logprobs, entropy = token_logprobs(hidden, weight, targets, temperature=temperature, **shape)
    count_head(hidden, weight, entropy)
    return logprobs, entropy


def _hits(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it is the most probable token."""
    weight, shape = _head(model)
    logprobs, hits = most_probable(hidden, weight, targets, **shape)
    count_head(hidden, weight, logprobs)
    return logprobs, hits


def _head(model: PreTrainedModel) -> tuple[Tensor, dict[str, Any]]:
    """The output layer's weight, and what else lies between a state and its logits."""
    head = model.get_output_embeddings()
    text_config = model.config.get_text_config()
    return head.weight, {
        "bias": getattr(head, "bias", None),
        "softcap": getattr(text_config, "final_logit_softcapping", None),
        "logit_scale": logit_scale(text_config),
    }


def _table(batch: Batch, row: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """[B, T] with ``values`` at (row, column) and 0 elsewhere."""
    table = values.new_zeros(batch.input_ids.shape)
    return table.index_put((row, column), values)


def _disagreement(found: Tensor, expected: Tensor, dtype: torch.dtype, whose: str = "packed and padded") -> str:
    """How two tables of hidden states [N, D] differ by more than rounding; "" where they do not.

    In float32 the largest difference counts. In half precision, where single numbers may be far off, it is the worst
    token's mean difference relative to its mean magnitude.
    """
    gaps, sizes = (found - expected).abs(), expected.abs()
    if dtype in (torch.bfloat16, torch.float16):
        gap = (gaps.float().mean(-1) / sizes.float().mean(-1)).max().item()
        tolerance = HALF_PROBE_EPSILONS * torch.finfo(dtype).eps
        return "" if gap <= tolerance else f"{whose} hidden states of a token differ by {gap:.0%}"
    gap = gaps.max().item()
    tolerance = PROBE_TOLERANCE * max(1.0, sizes.max().item())
    return "" if gap <= tolerance else f"{whose} hidden states differ by {gap:.2g}"


def _probe_batch(vocab_size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (3, 24), generator=generator)
    ids[1, :12] = ids[0, :12]  # a shared prefix, so that the probe covers it too
    lengths = torch.tensor([24, 20, 9])
    mask = torch.arange(24) < lengths[:, None]
    return Batch(input_ids=ids * mask, attention_mask=mask, loss_mask=mask)
