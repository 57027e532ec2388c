"""Encoded rows -> right-padded batches, and the order in which an epoch visits them."""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from typing import Any

import torch

from posttrain.data.encode import EncodedPair
from posttrain.data.rankings import EncodedRanking
from posttrain.data.stored import StoredRows
from posttrain.data.template import EncodedRow
from posttrain.data.unpaired import EncodedAnswer
from posttrain.types import Batch, PreferenceBatch, RankingBatch, UnpairedBatch

# Rows sorted by length at a time, in batches: enough to find neighbours, few enough to stay random.
_SORTED_BATCHES = 50


def collate(rows: Sequence[EncodedRow], pad_id: int) -> Batch:
    """One right-padded batch; masks come from lengths, never from token ids.

    Args:
        rows: B rows, at least one.
        pad_id: fills ``input_ids`` behind each row.

    Returns:
        The batch, as wide as its longest row.

    Raises:
        ValueError: if there are no rows.
    """
    return Batch(**_columns(rows, pad_id))


def collate_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> PreferenceBatch:
    """One right-padded batch of P pairs: row 2i chosen, row 2i + 1 its rejected.

    Margins are None when no pair has one; a pair without counts as 0 beside others that have one.

    Raises:
        ValueError: if there are no pairs.
    """
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    margins = None
    if any(pair.margin is not None for pair in pairs):
        margins = torch.tensor([pair.margin or 0.0 for pair in pairs], dtype=torch.float32)
    return PreferenceBatch(**_columns(rows, pad_id), margins=margins, ref_logps=_ref_logps(pairs))


def collate_preferences(items: Sequence[EncodedPair | EncodedRanking], pad_id: int) -> PreferenceBatch | RankingBatch:
    """Pairs as ``collate_pairs``; where one of them is a ranking, all of them as rankings, pairs being short ones.

    Raises:
        ValueError: if there are none.
    """
    pairs = [item for item in items if isinstance(item, EncodedPair)]
    if len(pairs) == len(items):
        return collate_pairs(pairs, pad_id)
    groups = [(item.chosen, item.rejected) if isinstance(item, EncodedPair) else item.rows for item in items]
    rows = [row for group in groups for row in group]
    sizes = torch.tensor([len(group) for group in groups])
    weights = 2 * len(rows) / (len(groups) * sizes * (sizes - 1))  # [N]
    return RankingBatch(
        **_columns(rows, pad_id),
        ranking=torch.arange(len(groups)).repeat_interleave(sizes),
        weight=weights.float().repeat_interleave(sizes),
    )


def collate_unpaired(answers: Sequence[EncodedAnswer], pad_id: int) -> UnpairedBatch:
    """One right-padded batch of judged answers, their mismatched twins in a table of their own.

    Raises:
        ValueError: if there are no answers.
    """
    ref_logps = _ref_logps(answers)
    return UnpairedBatch(
        **_columns([answer.row for answer in answers], pad_id),
        desirable=torch.tensor([answer.desirable for answer in answers]),
        ref_logps=None if ref_logps is None else ref_logps[0::2],
        mismatched=collate([answer.mismatched for answer in answers], pad_id),
        mismatched_ref_logps=None if ref_logps is None else ref_logps[1::2],
    )


def epoch_order(
    n: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    lengths: Sequence[int] | None = None,
    group_by_length: bool = False,
    batch_size: int = 1,
) -> list[int]:
    """The order of one epoch: a function of its arguments only, so a resumed run continues in it.

    Args:
        n: number of rows (or pairs).
        seed, epoch: choose the permutation.
        shuffle: False visits rows as they are (grouped rows: longest first).
        lengths: [n] tokens of each row; needed to group.
        group_by_length: put rows of similar length into the same batch; the longest row's batch comes first, so
            that memory runs out at once or not at all, and a smaller last batch stays last.
        batch_size: rows per batch.

    Returns:
        A permutation of 0 .. n - 1.

    Raises:
        ValueError: if rows are to be grouped without n lengths.
    """
    chance = random.Random(f"{seed}:{epoch}")
    order = list(range(n))
    if shuffle:
        chance.shuffle(order)
    if not group_by_length or n == 0:
        return order
    if lengths is None or len(lengths) != n:
        raise ValueError("grouping by length needs one length per row")
    window = max(1, batch_size * _SORTED_BATCHES) if shuffle else n
    batches: list[list[int]] = []
    for start in range(0, n, window):
        near = sorted(order[start : start + window], key=lambda i: lengths[i], reverse=True)
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    last = [batches.pop()] if len(batches[-1]) < batch_size else []
    if shuffle:
        chance.shuffle(batches)
    if batches:
        longest = max(range(len(batches)), key=lambda b: lengths[batches[b][0]])
        batches.insert(0, batches.pop(longest))
    return [i for batch in batches + last for i in batch]


def lengths_of(rows: Sequence[Sized]) -> list[int]:
    """Tokens of each row; of a pair, those of its longer side."""
    if isinstance(rows, StoredRows):
        return rows.lengths
    return [len(row) for row in rows]


def _ref_logps(rows: Sequence[EncodedPair | EncodedAnswer]) -> torch.Tensor | None:
    """[2 R] both log-probabilities of each row, or None where they are not known yet."""
    known = [logp for row in rows if row.ref_logps is not None for logp in row.ref_logps]
    return torch.tensor(known, dtype=torch.float32) if len(known) == 2 * len(rows) else None


def _columns(rows: Sequence[EncodedRow], pad_id: int) -> dict[str, Any]:
    if not rows:
        raise ValueError("a batch needs at least one row")
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    loss_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row.input_ids, dtype=torch.long)
        loss_mask[i, : len(row)] = torch.tensor(row.loss_mask, dtype=torch.bool)
    attention_mask = torch.arange(width)[None, :] < lengths[:, None]  # [B, T]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "loss_mask": loss_mask}
