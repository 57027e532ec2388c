"""Keys of the stage, of what trains in the model, and of the losses that learn from a fixed dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which stage runs and which weights it trains."""

    stage: Literal[
        "pt", "sft", "rm", "dpo", "kto", "ppo", "rloo", "grpo", "reinforce", "remax", "online_dpo", "rejection"
    ] = option(
        "sft",
        help="pt: pretraining, sft: supervised fine-tuning, rm: reward model; from preferences dpo (with `pref_loss`) "
        "and kto; from rewards ppo, rloo, grpo, reinforce, remax, online_dpo and rejection.",
    )
    algorithm: str | None = option(
        None,
        help="Class of your own in place of the stage's algorithm, `path/to/file.py:Class`; its fields take the values "
        "of the keys that are called like them.",
        path=True,
    )
    finetuning_type: Literal["lora", "full", "freeze"] = option(
        "lora", help="lora: adapters; full: all weights; freeze: some layers as they are."
    )
    lora_target: tuple[str, ...] = option(
        ("all",), help="Names of the linear layers that get an adapter; `all` is every one except the head."
    )
    trainable_layers: float | None = option(
        None,
        help="lora: adapters on the last N layers only (below 1: on that share of them); stages that sample then "
        "compute the layers beneath once for each completion. null is all layers.",
        above=0,
    )
    lora_rank: int = option(8, help="Inner dimension of a LoRA adapter.", minimum=1)
    lora_alpha: int | None = option(None, help="LoRA scale, divided by the rank; null is twice `lora_rank`.", minimum=1)
    lora_dropout: float = option(0.0, help="Dropout before a LoRA adapter.", minimum=0, below=1)
    use_rslora: bool = option(False, help="Divide `lora_alpha` by the square root of the rank instead.")
    use_dora: bool = option(False, help="DoRA: learn the length of each row of a weight apart from its direction.")
    pissa_init: bool = option(
        False,
        help="PiSSA: start an adapter from the largest singular vectors; for stages that do not sample.",
    )
    pissa_iter: int = option(16, help="Iterations of PiSSA's fast decomposition; -1 decomposes exactly.", minimum=-1)
    pissa_convert: bool = option(
        False, help="Changes nothing: a PiSSA adapter is always saved as plain LoRA of twice the rank on the base."
    )
    loraplus_lr_ratio: float | None = option(
        None, help="LoRA+: learning rate of the B matrices, as a multiple of `learning_rate`.", above=0
    )
    loraplus_lr_embedding: float = option(
        1e-6, help="Accepted for compatibility: adapters are on linear layers, never on the embedding.", minimum=0
    )
    create_new_adapter: bool = option(
        False,
        help="Train a new adapter on top of those in `adapter_name_or_path` instead of continuing the last; "
        "the stages that sample always do.",
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
class SFTConfig:
    """The loss of stage sft."""

    use_dft_loss: bool = option(
        False, help="Weigh each token's loss by the probability it has (dynamic fine-tuning), against rote learning."
    )
    neftune_noise_alpha: float | None = option(
        None, help="Noise on the embeddings in training, 5 to 15; null or 0 is none (NEFTune).", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """The loss of stage rm."""

    margin_column: str = option("margin", help="Column that says by how much chosen should win, where the data has it.")
    center_rewards_coef: float = option(
        0.0, help="Weight of the squared sum of both scores, which keeps rewards centred at 0; 0 is off.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Stages dpo and kto, and the pairs of stage online_dpo."""

    pref_loss: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "robust",
        "exo_pair",
        "nca_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "orpo",
        "cpo",
        "simpo",
    ] = option("sigmoid", help="Loss of stage dpo; sigmoid is DPO itself, orpo, cpo and simpo need no reference.")
    pref_beta: float = option(0.1, help="Beta of the preference loss; simpo takes 2 to 10.", above=0)
    pref_ftx: float = option(
        0.0, help="Weight of the loss per token of chosen answers, added to the preference loss; 1.0 in cpo.", minimum=0
    )
    dpo_label_smoothing: float = option(
        0.0, help="Share of pairs taken to be the wrong way round: sigmoid, robust, cpo.", minimum=0, below=0.5
    )
    simpo_gamma: float = option(0.5, help="Margin by which simpo wants the chosen answer to win.", minimum=0)
    kto_chosen_weight: float = option(1.0, help="Weight of good answers in stage kto.", minimum=0)
    kto_rejected_weight: float = option(1.0, help="Weight of bad answers in stage kto.", minimum=0)
    ref_model: str | None = option(
        None, help="Stages dpo and kto: another model as the reference; null is the policy as it starts.", path=True
    )
    ref_model_adapters: tuple[str, ...] = option(
        (), help="Adapters that the reference wears, on `ref_model` or else on `model_name_or_path`.", path=True
    )
    cache_ref_logps: bool = option(
        True,
        help="Keep the reference's log-probabilities: in `output_dir`, for a run that is resumed, and in the cache "
        "folder of models and datasets, for later runs on the same rows and weights.",
    )
