"""The nouns: batches, roles, what a role answers, what a loss returns, and the state an algorithm carries.

``index t`` always means *token t*: ``logprobs[b, t]`` is log p(token t | tokens before it), ``values[b, t]`` the
value of the state before token t. Masks are bool and True means *counts*. All columns are right-padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Role(StrEnum):
    """The four parts of an online run; an offline run trains one of them."""

    ACTOR = "actor"
    REFERENCE = "reference"
    CRITIC = "critic"
    REWARD = "reward"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A frozen table of right-padded sequences.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] bool, True on real tokens; made from lengths, never from token ids.
        loss_mask: [B, T] bool, True on tokens that train (as targets).
        lower_states: for each row, where its tokens' states behind the frozen lower layers are kept; () where they
            are not (``models/split``).
    """

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    lower_states: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def lengths(self) -> Tensor:
        """[B] int64, the number of real tokens of each sequence."""
        return self.attention_mask.sum(dim=1)

    def rows(self, index: Tensor) -> Self:
        """The sub-table of these rows, in this order; padding columns that no row needs are cut off.

        Args:
            index: [R] int64 row numbers.
        """
        width = int(self.lengths[index].max()) if len(index) else 0
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if column is None:
                continue
            if isinstance(column, Mapping):
                changes[field.name] = {name: values[index] for name, values in column.items()}
            elif isinstance(column, tuple):
                changes[field.name] = tuple(column[i] for i in index.tolist()) if column else ()
            else:
                changes[field.name] = column[index, :width] if column.dim() == 2 else column[index]
        return dataclasses.replace(self, **changes)

    def units(self, together: int) -> list[range]:
        """Neighbouring rows that are never cut apart; ``together`` is how many where the table does not know."""
        return [range(start, start + together) for start in range(0, len(self), together)]

    def with_columns(self, **columns: Any) -> Self:
        """The same table with these columns filled in."""
        return dataclasses.replace(self, **columns)

    def to(self, device: torch.device | str) -> Self:
        """The same table on ``device``."""
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v.to(device) for k, v in columns.items() if hasattr(v, "to")})


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Batch):
    """Pairs: row 2i is chosen, row 2i + 1 its rejected.

    Attributes:
        margins: [P] float, by how much chosen should win; None when the data has none.
        ref_logps: [B] log-probability of each answer under the reference, summed over its tokens.
    """

    margins: Tensor | None = None
    ref_logps: Tensor | None = None

    def rows(self, index: Tensor) -> Self:
        """As ``Batch.rows``; ``index`` must keep pairs whole."""
        if self.margins is None:
            return super().rows(index)
        pairs = index[::2] // 2
        bare = super(PreferenceBatch, dataclasses.replace(self, margins=None)).rows(index)
        return dataclasses.replace(bare, margins=self.margins[pairs])


@dataclass(frozen=True, kw_only=True)
class RankingBatch(Batch):
    """Rankings: the answers to one prompt are neighbours, the best first.

    Attributes:
        ranking: [B] int64, equal on the rows of one ranking.
        weight: [B], of a pair of this ranking beside the number of rows: rankings weigh the same, however long.
    """

    ranking: Tensor
    weight: Tensor

    def units(self, together: int) -> list[range]:
        """The rankings."""
        starts = [i for i, same in enumerate(self.ranking.diff(prepend=self.ranking[:1] - 1).tolist()) if same]
        return [range(start, end) for start, end in zip(starts, [*starts[1:], len(self)], strict=True)]


@dataclass(frozen=True, kw_only=True)
class UnpairedBatch(Batch):
    """Answers that somebody found good or bad, each on its own.

    Attributes:
        desirable: [B] bool, True on good answers.
        ref_logps: [B] log-probability of each answer under the reference, summed over its tokens.
        mismatched: B rows, the same prompts with answers to other ones; their columns never train. Not part of
            ``rows``: what is taken from it is taken over the whole step, before the step is cut.
        mismatched_ref_logps: [B] of ``mismatched`` under the reference.
        kl: [B], everywhere the same: how far the policy is from the reference on the whole step's mismatched rows.
    """

    desirable: Tensor
    ref_logps: Tensor | None = None
    mismatched: Batch | None = None
    mismatched_ref_logps: Tensor | None = None
    kl: Tensor | None = None

    def rows(self, index: Tensor) -> Self:
        """As ``Batch.rows``, without ``mismatched``."""
        bare = dataclasses.replace(self, mismatched=None) if self.mismatched is not None else self
        return super(UnpairedBatch, bare).rows(index)


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(Batch):
    """Experience, its columns filled left to right, each by exactly one writer.

    Sampler: ``input_ids .. ended``; reward: ``rewards, baseline_rewards``; reference: ``ref_logprobs``; critic:
    ``values``; algorithm: ``advantages, returns, trains``. The ``group_size`` completions of one prompt are contiguous
    rows.

    Attributes:
        logprobs: [B, T] log-probabilities under the sampling policy, after temperature, before top_k, top_p,
            min_p and repetition penalty; 0 outside ``loss_mask``.
        ended: [B] bool, True where the completion stopped by itself (end-of-turn token), False where it was cut.
        prompts: B prompt texts. completions: B completion texts, special tokens removed.
        extras: B mappings, the other columns of the prompt's data row.
        messages: B chats that wait for the completion, their messages with ``role`` and ``content``, as in the data.
        rewards: [B] one score per sequence.
        reward_parts: name -> [B] scores of what the reward is a sum of, for the log; None where it is one thing.
        baseline_rewards: [B] the score of the greedy completion of the same prompt, for algorithms that ask for it.
        ref_logprobs: [B, T] under the reference policy. values: [B, T] before the update.
        advantages: [B, T]. returns: [B, T].
        trains: [B] bool, the rows that the update uses; None is all.
    """

    logprobs: Tensor
    ended: Tensor
    prompts: tuple[str, ...] = ()
    completions: tuple[str, ...] = ()
    extras: tuple[Mapping[str, Any], ...] = ()
    messages: tuple[tuple[Mapping[str, str], ...], ...] = ()
    rewards: Tensor | None = None
    reward_parts: Mapping[str, Tensor] | None = None
    baseline_rewards: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    trains: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a role answers; a field it was not asked for is None. Zero outside the mask that belongs to it.

    Attributes:
        logprobs: [B, T] where ``loss_mask``. entropy: [B, T] in nats where ``loss_mask``.
        values: [B, T] where ``loss_mask``. scores: [B] at the last real token.
        hits: [B, T] bool, whether no token is more probable there; in evaluations only.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None
    hits: Tensor | None = None


Unit = Literal["token", "sequence", "pair", "constant"]


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """An unreduced loss and the unit it counts in.

    The engine divides the weighted sum by ONE count of ``unit`` over the whole optimizer step on all ranks: trained
    tokens ([B, T] losses), sequences ([B]), pairs ([P]), or 1 for a constant.

    Attributes:
        loss: [B, T], [B], [P] or scalar, by ``unit``; 0 where it does not count.
        metrics: name -> tensor of the loss's shape, detached; averaged over the same unit. NaN for a sequence or a
            pair says that the metric does not concern it.
        unit: what is counted.
        weights: same shape as ``loss``; None is 1 everywhere that counts.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    unit: Unit
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AlgorithmState:
    """What an algorithm changes during a run; passed in, returned, checkpointed as JSON.

    Attributes:
        kl_coef: current coefficient of the KL penalty (moves when it is adaptive).
        reward_count, reward_mean, reward_m2: running statistics of raw rewards (Welford), for normalisation.
        iterations: completed ``credit`` calls.
    """

    kl_coef: float = 0.0
    reward_count: float = 0.0
    reward_mean: float = 0.0
    reward_m2: float = 0.0
    iterations: int = 0
