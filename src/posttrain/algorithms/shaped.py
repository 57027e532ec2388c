"""What every online algorithm does with scores before it credits tokens: normalise, clip, charge for leaving."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.algorithms.columns import at_last_token, column, masked_column
from posttrain.algorithms.running import reward_std, with_rewards
from posttrain.algorithms.statistics import experience_statistics
from posttrain.functional import KLKind, kl_estimate
from posttrain.types import AlgorithmState, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class ShapedRewards:
    """Scores as token rewards, with the price of leaving the reference in them or in the loss.

        r_t = −β KL_t + [t is the last token] score                     kl_in = "reward"
        β ← β (1 + clip(KL / target − 1, ±0.2) n / horizon)             n sequences, KL per sequence

    Papers: Ziegler et al., 2019 (arXiv:1909.08593), eq. 2 and the controller of β, whose gain K_β is n / horizon as in
    their code; in the loss: Shao et al., 2024, eq. 3 (arXiv:2402.03300).

    Attributes:
        kl_coef: β at the start. kl_in: where the KL counts; in the loss β stays fixed.
        kl_estimator: the estimator. kl_target: KL per sequence that β is steered to; None keeps β fixed.
        kl_horizon: in sequences.
        normalize_rewards: (score − mean) / std over all scores so far, this batch included; then
        reward_clip: bound on |score|.
        group_size: completions of one prompt.
    """

    consults: ClassVar[tuple[Role, ...]] = (Role.REFERENCE,)
    greedy_baseline: ClassVar[bool] = False
    rows_together: ClassVar[int] = 1

    kl_coef: float = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: KLKind = "k1"
    kl_target: float | None = None
    kl_horizon: float = 10_000
    normalize_rewards: bool = False
    reward_clip: float | None = None
    group_size: int = 1

    @property
    def trained_group(self) -> int:
        """Rows of one prompt that stay in one minibatch."""
        return self.group_size

    def initial_state(self) -> AlgorithmState:
        """The state before the first iteration."""
        return AlgorithmState(kl_coef=self.kl_coef)

    def statistics(self, batch: RolloutBatch, state: AlgorithmState) -> dict[str, float]:
        """What the log says about a credited batch; ``state`` is the one that ``credit`` was given."""
        return {**experience_statistics(batch, self.kl_estimator), "kl_coef": state.kl_coef}

    def scores(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[Tensor, AlgorithmState]:
        """Rewards [B] normalised and clipped as asked, and the state that has seen them."""
        rewards = column(batch, "rewards")
        if self.normalize_rewards:
            state = with_rewards(state, rewards)
        return self.scaled(rewards, state), state

    def scaled(self, rewards: Tensor, state: AlgorithmState) -> Tensor:
        """Rewards [B] normalised by what the state has seen, and clipped, as asked."""
        if self.normalize_rewards:
            rewards = (rewards - state.reward_mean) / (reward_std(state) + 1e-8)
        if self.reward_clip is not None:
            rewards = rewards.clamp(-self.reward_clip, self.reward_clip)
        return rewards

    def penalty(self, batch: RolloutBatch, state: AlgorithmState) -> Tensor:
        """[B, T] β KL_t, which is taken off the reward of a token; 0 where the loss charges for it."""
        if self.kl_in == "loss":
            return torch.zeros_like(batch.logprobs)
        return state.kl_coef * self._kl(batch)

    def token_rewards(self, scores: Tensor, batch: RolloutBatch, state: AlgorithmState) -> Tensor:
        """[B, T] the score on the last token, the penalty on each."""
        return at_last_token(scores, batch.loss_mask) - self.penalty(batch, state)

    def sequence_rewards(self, scores: Tensor, batch: RolloutBatch, state: AlgorithmState) -> Tensor:
        """[B] the score less the penalty of the whole completion."""
        return scores - self.penalty(batch, state).sum(dim=1)

    def moved_on(self, state: AlgorithmState, batch: RolloutBatch) -> AlgorithmState:
        """The state after an iteration: one more, β steered towards its target."""
        kl_coef = state.kl_coef
        if self.kl_target is not None and self.kl_target > 0 and self.kl_in == "reward":
            kl = float(self._kl(batch).sum(dim=1).mean())
            error = min(max(kl / self.kl_target - 1, -0.2), 0.2)
            kl_coef = kl_coef * (1 + error * len(batch) / self.kl_horizon)
        return dataclasses.replace(state, kl_coef=kl_coef, iterations=state.iterations + 1)

    def _kl(self, batch: RolloutBatch) -> Tensor:
        old, ref = (masked_column(batch, name, batch.loss_mask) for name in ("logprobs", "ref_logprobs"))
        return kl_estimate(old, ref, self.kl_estimator)


def over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B, T] each sequence's advantage [B] on every one of its trained tokens."""
    return torch.where(mask, advantages[:, None].expand(mask.shape), 0.0)
