"""Keys of the stage, of what trains in the model, of the reward model and of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which stage runs and which weights it trains."""

    stage: Literal["pt", "sft", "rm", "ppo"] = option(
        "sft", help="pt: pretraining, sft: supervised fine-tuning, rm: reward model, ppo: reinforcement learning."
    )
    finetuning_type: Literal["lora", "full", "freeze"] = option(
        "lora", help="lora: adapters; full: all weights; freeze: some layers as they are."
    )
    lora_target: tuple[str, ...] = option(
        ("all",), help="Names of the linear layers that get an adapter; `all` is every one except the head."
    )
    lora_rank: int = option(8, help="Inner dimension of a LoRA adapter.", minimum=1)
    lora_alpha: int | None = option(None, help="LoRA scale, divided by the rank; null is twice `lora_rank`.", minimum=1)
    lora_dropout: float = option(0.0, help="Dropout before a LoRA adapter.", minimum=0, below=1)
    use_rslora: bool = option(False, help="Divide `lora_alpha` by the square root of the rank instead.")
    create_new_adapter: bool = option(
        False,
        help="Train a new adapter on top of those in `adapter_name_or_path` instead of continuing the last; "
        "stage ppo always does.",
    )
    additional_target: tuple[str, ...] = option(
        (), help="Only the empty list: modules beside the LoRA layers are not trained."
    )
    freeze_trainable_layers: int = option(
        2, help="freeze: how many of the last layers train; a negative number takes the first layers."
    )
    freeze_trainable_modules: tuple[str, ...] = option(
        ("all",), help="freeze: names of the modules that train within those layers."
    )
    freeze_extra_modules: tuple[str, ...] = option(
        (), help="freeze: modules outside the layers that train too, such as the embedding."
    )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """The loss of stage rm."""

    margin_column: str = option("margin", help="Column that says by how much chosen should win, where the data has it.")
    center_rewards_coef: float = option(
        0.0, help="Weight of the squared sum of both scores, which keeps rewards centred at 0; 0 is off.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Stage ppo: the penalty for leaving the reference, and the two clipped losses."""

    ppo_buffer_size: int = option(
        1,
        help="Optimizer batches gathered before each update: per_device_train_batch_size x "
        "gradient_accumulation_steps x this many completions.",
        minimum=1,
    )
    ppo_epochs: int = option(4, help="Passes over the gathered experience.", minimum=1)
    ppo_score_norm: bool = option(False, help="Normalise rewards by their running mean and standard deviation.")
    ppo_whiten_rewards: bool = option(False, help="Whiten the token rewards before advantages are computed.")
    reward_clip: float | None = option(None, help="Clip rewards to plus or minus this value.", above=0)
    kl_coef: float = option(0.2, help="Weight of the KL penalty, the first one where it adapts.", minimum=0)
    ppo_target: float | None = option(
        6.0, help="KL per sequence that the adaptive coefficient aims at; null or 0 keeps `kl_coef` fixed."
    )
    kl_horizon: int = option(10000, help="Sequences over which the adaptive coefficient moves.", minimum=1)
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = option("k1", help="Estimator of the KL in the reward penalty.")
    gamma: float = option(1.0, help="Discount of later rewards.", minimum=0, maximum=1)
    gae_lambda: float = option(0.95, help="Lambda of generalised advantage estimation.", minimum=0, maximum=1)
    whiten_advantages: bool = option(True, help="Give advantages mean 0 and variance 1 over the whole experience.")
    clip_range: float = option(0.2, help="How far the policy ratio may move from 1 before its gradient stops.", above=0)
    clip_range_value: float = option(0.2, help="How far a value may move from its old one.", above=0)
    value_coef: float = option(0.1, help="Weight of the value loss.", minimum=0)
    entropy_coef: float = option(0.0, help="Weight of the entropy bonus.", minimum=0)
    critic: Literal["value_head", "adapter", "model"] = option(
        "value_head",
        help="value_head: a head on the actor's trunk; adapter (lora) and model (full, freeze): a critic of its own, "
        "started from the reward model.",
    )
    value_learning_rate: float | None = option(
        None, help="Learning rate of the critic; null is `learning_rate`.", above=0
    )
    clip_grad_per_role: bool = option(
        False, help="Clip the gradients of actor and critic to `max_grad_norm` each by itself, not both together."
    )
    num_rollout_slots: int = option(32, help="Sequences that are decoded at the same time.", minimum=1)
    allow_mismatch: bool = option(
        False, help="Accept an adapter that was trained on another backbone; its scores may mean nothing."
    )
    gate_tolerance: float | None = option(
        None, help="How far KL and ratio may be from 0 and 1 before the first update; null goes by precision.", above=0
    )
