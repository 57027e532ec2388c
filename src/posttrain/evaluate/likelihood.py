"""How probable held-out text is: mean loss per token, perplexity, and how often the next token is the likeliest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.data.batches import collate
from posttrain.data.template import pad_token_id
from posttrain.evaluate.bootstrap import Measure, Record, ratio
from posttrain.evaluate.wardrobe import Wardrobe

Progress = Callable[[str, int, int], None]


def _per_token(key: str) -> Callable[[Record], Sequence[float]]:
    return lambda record: (float(record[key]), float(record["num_tokens"]))


def _perplexity(sums: Tensor) -> Tensor:
    return torch.exp(ratio(sums).clamp(max=700.0))


MEASURES = (
    Measure(
        name="loss", title="loss", columns=_per_token("loss_sum"), value=ratio, better="lower", unit="nats per token"
    ),
    Measure(name="perplexity", title="perplexity", columns=_per_token("loss_sum"), value=_perplexity, better="lower"),
    Measure(name="token_accuracy", title="token accuracy", columns=_per_token("hits"), value=ratio, unit="share"),
)


def likelihood_records(
    wardrobe: Wardrobe, rows: Sequence[Any], *, batch_size: int, progress: Progress
) -> dict[str, list[dict[str, float]]]:
    """Variant -> of each row the sums that loss, perplexity and token accuracy are made of.

        loss = −(1/N) Σ_t log p(token t | tokens before it),  perplexity = exp(loss),
        token accuracy = (1/N) Σ_t 1[no token is more probable than token t]

    Args:
        wardrobe: the variants.
        rows: encoded rows; only tokens of their loss masks count.
        batch_size: rows of one batch; changes no result.
        progress: told of every batch: what, done, in all.

    Returns:
        Variant -> {"loss_sum", "num_tokens", "hits"} of each row.
    """
    pad = pad_token_id(wardrobe.tokenizer)
    batches = [collate(rows[start : start + batch_size], pad) for start in range(0, len(rows), batch_size)]
    found: dict[str, list[dict[str, float]]] = {}
    for name, outfit in wardrobe.variants.items():
        found[name] = []
        for number, batch in enumerate(batches):
            counted = batch.loss_mask.clone()
            counted[:, 0] = False  # nothing predicts the first token
            logprobs, hits = wardrobe.likelihood(outfit.wears, batch)
            sums = (-logprobs.double().sum(dim=1)).tolist(), counted.sum(dim=1).tolist(), hits.sum(dim=1).tolist()
            found[name] += [
                {"loss_sum": loss, "num_tokens": count, "hits": hit} for loss, count, hit in zip(*sums, strict=True)
            ]
            progress(f"score {name}", number + 1, len(batches))
    return found
