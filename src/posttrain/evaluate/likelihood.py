"""How probable held-out text is: mean loss per token and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.data.batches import collate
from posttrain.data.template import pad_token_id
from posttrain.evaluate.wardrobe import Wardrobe

Progress = Callable[[str, int, int], None]


def measure_likelihood(
    wardrobe: Wardrobe, rows: Sequence[Any], *, batch_size: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """Variant -> loss and perplexity over all trained tokens of all rows.

        loss = −(1/N) Σ_t log p(token t | tokens before it),  perplexity = exp(loss)

    Args:
        wardrobe: the variants.
        rows: encoded rows; only tokens of their loss masks count.
        batch_size: rows of one batch; changes no result.
        progress: told of every batch: what, done, in all.

    Returns:
        Variant -> {"loss", "perplexity", "num_tokens"}.
    """
    pad = pad_token_id(wardrobe.tokenizer)
    batches = [collate(rows[start : start + batch_size], pad) for start in range(0, len(rows), batch_size)]
    found = {}
    for name, outfit in wardrobe.variants.items():
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            counted = batch.loss_mask.clone()
            counted[:, 0] = False  # nothing predicts the first token
            total -= float(wardrobe.logprobs(outfit.wears, batch).double().sum())
            count += int(counted.sum())
            progress(f"score {name}", number + 1, len(batches))
        loss = total / max(count, 1)
        found[name] = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "num_tokens": float(count)}
    return found
