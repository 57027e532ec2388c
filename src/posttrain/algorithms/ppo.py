"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.algorithms.columns import masked_column
from posttrain.functional import clipped_value_loss, gae, whiten
from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class PPO(ClippedPolicy):
    """Raise the probability of tokens that did better than the critic expected, a bounded step at a time.

        r_t = −β KL_t + [t is the last token] score                           reward of a token
        δ_t = r_t + γ V_{t+1} − V_t        Â_t = Σ_l (γλ)^l δ_{t+l}           advantage, then whitened
        L_actor = −min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) − c_H H                  ρ = π(y_t) / π_old(y_t)
        L_critic = c_V ½ max((V − R)², (V_old + clip(V − V_old, ±ε_V) − R)²)  R = Â + V_old, before whitening

    Papers: Schulman et al., 2017, eq. 7 (arXiv:1707.06347); advantages: Schulman et al., 2016, eq. 16
    (arXiv:1506.02438); KL in the reward: Ziegler et al., 2019, eq. 2 (arXiv:1909.08593). Differs from them: rewards can
    be normalised by their running mean and deviation; KL has several estimators; β adapts (``ShapedRewards``).

    Attributes:
        value_clip, value_coef: ε_V, c_V. gamma, gae_lambda: γ, λ.
        whiten_rewards: unit variance of token rewards, the mean kept. whiten_advantages: mean 0 and variance 1.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR, Role.CRITIC)
    consults: ClassVar[tuple[Role, ...]] = (Role.REFERENCE, Role.CRITIC)

    kl_coef: float = 0.2
    kl_target: float | None = 6.0
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` and ``returns`` [B, T], 0 outside ``loss_mask``; move β and the reward statistics on."""
        mask = batch.loss_mask
        scores, moved = self.scores(batch, state)
        rewards = self.token_rewards(scores, batch, state)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        values = masked_column(batch, "values", mask)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.gae_lambda)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask)
        return batch.with_columns(advantages=advantages, returns=returns), self.moved_on(moved, batch)

    def loss(self, role: Role, out: Outputs, batch: RolloutBatch) -> LossTerm:
        """The loss of the actor, or per token [B, T] of the critic."""
        return super().loss(role, out, batch) if role is Role.ACTOR else self._critic_loss(out, batch)

    def _critic_loss(self, out: Outputs, batch: RolloutBatch) -> LossTerm:
        mask = batch.loss_mask
        values = masked_column(out, "values", mask)
        old, returns = (masked_column(batch, name, mask) for name in ("values", "returns"))
        loss = clipped_value_loss(values, old, returns, clip=self.value_clip)
        metrics = {
            "value_loss": loss.detach(),
            "value_clip_fraction": (loss > 0.5 * (values - returns).square()).to(loss.dtype),
        }
        return LossTerm(loss=self.value_coef * loss, metrics=metrics, unit="token")
