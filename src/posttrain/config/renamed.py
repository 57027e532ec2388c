"""Names of keys: what they were called before, and what other programs call them."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "infer_dtype": "dtype",
    "torch_dtype": "dtype",
    "batch_size": "per_device_eval_batch_size",
    "save_dir": "output_dir",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "activation_checkpointing": "gradient_checkpointing",
    "bnb_4bit_quant_type": "quantization_type",
    "bnb_4bit_use_double_quant": "double_quantization",
    "use_bnb_nested_quant": "double_quantization",
}
"""Former names: read as the key they became, with a note."""

ELSEWHERE: Mapping[str, str] = {
    # LLaMA-Factory v1
    "model": "model_name_or_path",
    "train_dataset": "dataset",
    "micro_batch_size": "per_device_train_batch_size",
    "global_batch_size": "gradient_accumulation_steps",
    "enable_activation_checkpointing": "gradient_checkpointing",
    "custom_chat_template": "template",
    "save_epochs": "save_strategy",
    "peft_config": "lora_rank",
    "optim_config": "optim",
    "lr_scheduler_config": "lr_scheduler_type",
    # TRL and others
    "init_kl_coef": "kl_coef",
    "adap_kl_ctrl": "ppo_target",
    "target_kl": "ppo_target",
    "horizon": "kl_horizon",
    "cliprange": "clip_range",
    "cliprange_value": "clip_range_value",
    "vf_coef": "value_coef",
    "score_clip": "reward_clip",
    "num_generations": "num_return_sequences",
    "rloo_k": "num_return_sequences",
    "epsilon": "clip_range",
    "epsilon_high": "clip_range_high",
    "beta": "pref_beta",
    "loss_type": "pref_loss",
    "rpo_alpha": "pref_ftx",
    "cpo_alpha": "pref_ftx",
    "label_smoothing": "dpo_label_smoothing",
    "desirable_weight": "kto_chosen_weight",
    "undesirable_weight": "kto_rejected_weight",
    "precompute_ref_log_probs": "cache_ref_logps",
    "loss_agg_mode": "loss_average",
    "num_iterations": "ppo_epochs",
    "max_completion_length": "max_new_tokens",
    "num_ppo_epochs": "ppo_epochs",
    "whiten_rewards": "ppo_whiten_rewards",
    "response_length": "max_new_tokens",
    "max_seq_length": "cutoff_len",
    "max_seq_len": "cutoff_len",
    "block_size": "cutoff_len",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_target",
    "target_modules": "lora_target",
    "lora_modules_to_save": "additional_target",
    "batch_size_per_device": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "betas": "adam_beta1",
    "system": "default_system",
}
"""What a key of another program is called here, for the message about an unknown key; values may mean other things."""
