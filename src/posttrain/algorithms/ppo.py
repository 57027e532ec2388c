"""Proximal policy optimisation with a KL penalty in the reward."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.algorithms.columns import at_last_token, column, masked_column
from posttrain.algorithms.running import reward_std, with_rewards
from posttrain.algorithms.statistics import experience_statistics
from posttrain.functional import KLKind, clipped_surrogate, clipped_value_loss, gae, kl_estimate, whiten
from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Raise the probability of tokens that did better than the critic expected, a bounded step at a time.

        r_t = −β KL_t + [t is the last token] score                           reward of a token
        δ_t = r_t + γ V_{t+1} − V_t        Â_t = Σ_l (γλ)^l δ_{t+l}           advantage, then whitened
        L_actor = −min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) − c_H H                  ρ = π(y_t) / π_old(y_t)
        L_critic = c_V ½ max((V − R)², (V_old + clip(V − V_old, ±ε_V) − R)²)  R = Â + V_old, before whitening
        β ← β (1 + clip(KL / target − 1, ±0.2) n / horizon)                   n sequences, KL per sequence

    Papers: Schulman et al., 2017, eq. 7 (arXiv:1707.06347); advantages: Schulman et al., 2016, eq. 16
    (arXiv:1506.02438); KL in the reward (eq. 2) and the controller of β: Ziegler et al., 2019 (arXiv:1909.08593).
    Differs from them: the controller's gain K_β is n / horizon, as in their code; rewards can be normalised by their
    running mean and deviation; KL has several estimators.

    Attributes:
        kl_coef: β at the start. kl_target: KL per sequence that β is steered to; None keeps β fixed. kl_horizon: in
            sequences. kl_estimator: the estimator in the reward.
        clip, value_clip: ε, ε_V. value_coef, entropy_coef: c_V, c_H. gamma, gae_lambda: γ, λ.
        normalize_rewards: (score − mean) / std over all scores so far, this batch included; then
        reward_clip: bound on |score|. whiten_rewards: unit variance of token rewards, the mean kept.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR, Role.CRITIC)
    consults: ClassVar[tuple[Role, ...]] = (Role.REFERENCE, Role.CRITIC)

    kl_coef: float = 0.2
    kl_target: float | None = 6.0
    kl_horizon: float = 10_000
    kl_estimator: KLKind = "k1"
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    reward_clip: float | None = None
    normalize_rewards: bool = False
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    entropy_coef: float = 0.0
    group_size: int = 1

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=self.kl_coef)

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` and ``returns`` [B, T], 0 outside ``loss_mask``; move β and the reward statistics on."""
        mask = batch.loss_mask
        old, ref, values = (masked_column(batch, name, mask) for name in ("logprobs", "ref_logprobs", "values"))
        scores, moved = self._scores(column(batch, "rewards"), state)
        kl = kl_estimate(old, ref, self.kl_estimator)  # [B, T]
        rewards = at_last_token(scores, mask) - state.kl_coef * kl
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.gae_lambda)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask)
        moved = dataclasses.replace(
            moved,
            kl_coef=self._next_kl_coef(state.kl_coef, float(kl.sum(dim=1).mean()), len(batch)),
            iterations=state.iterations + 1,
        )
        return batch.with_columns(advantages=advantages, returns=returns), moved

    def loss(self, role: Role, out: Outputs, batch: RolloutBatch) -> LossTerm:
        """Per-token loss [B, T] of the actor or of the critic."""
        return self._actor_loss(out, batch) if role is Role.ACTOR else self._critic_loss(out, batch)

    def statistics(self, batch: RolloutBatch, state: AlgorithmState) -> dict[str, float]:
        """What the log says about a credited batch; ``state`` is the one that ``credit`` was given."""
        return {**experience_statistics(batch, self.kl_estimator), "kl_coef": state.kl_coef}

    def _scores(self, rewards: Tensor, state: AlgorithmState) -> tuple[Tensor, AlgorithmState]:
        if self.normalize_rewards:
            state = with_rewards(state, rewards)
            rewards = (rewards - state.reward_mean) / (reward_std(state) + 1e-8)
        if self.reward_clip is not None:
            rewards = rewards.clamp(-self.reward_clip, self.reward_clip)
        return rewards, state

    def _next_kl_coef(self, kl_coef: float, kl: float, num_sequences: int) -> float:
        if self.kl_target is None:
            return kl_coef
        error = min(max(kl / self.kl_target - 1, -0.2), 0.2)
        return kl_coef * (1 + error * num_sequences / self.kl_horizon)

    def _actor_loss(self, out: Outputs, batch: RolloutBatch) -> LossTerm:
        mask = batch.loss_mask
        new = masked_column(out, "logprobs", mask)
        old, advantages = (masked_column(batch, name, mask) for name in ("logprobs", "advantages"))
        loss, clipped = clipped_surrogate(new, old, advantages, clip_low=self.clip, clip_high=self.clip)
        metrics = {
            "ratio": torch.where(mask, torch.exp(new - old), 0.0).detach(),
            "clip_fraction": clipped.to(loss.dtype),
            "approx_kl": kl_estimate(old, new, "k3").detach(),
        }
        if out.entropy is not None or self.entropy_coef:
            entropy = masked_column(out, "entropy", mask)
            metrics["entropy"] = entropy.detach()
            loss = loss - self.entropy_coef * entropy if self.entropy_coef else loss
        return LossTerm(loss=loss, metrics=metrics, unit="token")

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
