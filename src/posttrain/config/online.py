"""Keys of the stages that sample their own text: what they share, and what stage ppo adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Stages ppo, rloo, grpo, reinforce, remax, online_dpo and rejection: experience, penalty, policy loss."""

    ppo_buffer_size: int = option(
        1,
        help="Optimizer batches gathered before each update: per_device_train_batch_size x "
        "gradient_accumulation_steps x this many completions.",
        minimum=1,
    )
    ppo_epochs: int = option(1, help="Passes over the gathered experience.", minimum=1)
    ppo_score_norm: bool = option(False, help="Normalise rewards by their running mean and standard deviation.")
    reward_clip: float | None = option(None, help="Clip rewards to plus or minus this value.", above=0)
    kl_coef: float = option(0.05, help="Weight of the KL penalty, the first one where it adapts.", minimum=0)
    kl_in: Literal["reward", "loss"] = option("reward", help="Where the KL penalty counts.")
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = option("k1", help="Estimator of the KL in the penalty.")
    ppo_target: float | None = option(
        None, help="KL per sequence that the adaptive coefficient aims at; null or 0 keeps `kl_coef` fixed."
    )
    kl_horizon: int = option(10000, help="Sequences over which the adaptive coefficient moves.", minimum=1)
    clip_range: float = option(0.2, help="How far the policy ratio may move from 1 before its gradient stops.", above=0)
    clip_range_high: float | None = option(
        None, help="How far it may rise above 1, where that is not `clip_range`.", above=0
    )
    dual_clip: float | None = option(
        None, help="Bound on the loss of a token with a negative advantage, in units of it; above 1.", above=1
    )
    policy_loss: Literal["clip", "cispo"] = option(
        "clip", help="clip: the clipped ratio of PPO; cispo: clipped weights, every token keeps its gradient."
    )
    importance_sampling_level: Literal["token", "sequence", "completion"] = option(
        "token",
        help="What has a ratio: each token; the mean of a completion's tokens (GSPO); or the completion as one action, "
        "with `loss_average: sequence` (RLOO as in its paper).",
    )
    loss_average: Literal["token", "sequence", "budget"] = option(
        "token", help="Over all tokens; over completions of their mean; or over completions of sum / max_new_tokens."
    )
    entropy_coef: float = option(0.0, help="Weight of the entropy bonus.", minimum=0)
    whiten_advantages: bool = option(
        True, help="ppo, rloo: give advantages mean 0 and variance 1 over the whole experience."
    )
    gamma: float = option(1.0, help="ppo, reinforce: discount of later rewards.", minimum=0, maximum=1)
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", help="grpo: what the advantages of a group are divided by, its own spread, that of all rewards, or 1."
    )
    reinforce_baseline: Literal["batch", "group"] = option(
        "batch", help="reinforce: mean of the whole batch (REINFORCE++), or first that of the prompt's completions."
    )
    reward_threshold: float | None = option(
        None, help="rejection: reward that the best completion of a prompt must reach to be imitated."
    )
    dynamic_sampling: bool = option(
        False, help="Replace prompts whose completions all have the same reward by further ones."
    )
    dynamic_sampling_rounds: int = option(3, help="How often at most it draws further prompts.", minimum=1)
    ptx_dataset: tuple[str, ...] = option(
        (), help="Datasets of plain text whose loss is added to every update, against forgetting (PPO-ptx).", path=True
    )
    ptx_coef: float = option(1.0, help="Weight of that loss.", minimum=0)
    ptx_batch_size: int = option(8, help="Rows of it in every optimizer step.", minimum=1)
    num_rollout_slots: int = option(32, help="Sequences that are decoded at the same time.", minimum=1)
    gate_tolerance: float | None = option(
        None, help="How far KL and ratio may be from 0 and 1 before the first update; null goes by precision.", above=0
    )


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Stage ppo: the critic."""

    ppo_whiten_rewards: bool = option(False, help="Whiten the token rewards before advantages are computed.")
    gae_lambda: float = option(0.95, help="Lambda of generalised advantage estimation.", minimum=0, maximum=1)
    clip_range_value: float = option(0.2, help="How far a value may move from its old one.", above=0)
    value_coef: float = option(0.1, help="Weight of the value loss.", minimum=0)
    critic: Literal["value_head", "adapter", "model"] = option(
        "value_head",
        help="value_head: a head on the actor's trunk; adapter (lora) and model (full, freeze): a critic of its own, "
        "started from the reward model.",
    )
    value_learning_rate: float | None = option(
        None, help="Learning rate of the critic; null is `learning_rate`.", above=0
    )
    critic_warmup_steps: int = option(
        0, help="First iterations in which only what the critic alone trains moves.", minimum=0
    )
    clip_grad_per_role: bool = option(
        False, help="Clip the gradients of actor and critic to `max_grad_norm` each by itself, not both together."
    )
