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
    "lam": "gae_lambda",
    "cliprange": "clip_range",
    "cliprange_value": "clip_range_value",
    "vf_coef": "value_coef",
    "score_clip": "reward_clip",
    "num_ppo_epochs": "ppo_epochs",
    "whiten_rewards": "ppo_whiten_rewards",
    "reward_model_path": "reward_model",
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
    "max_len": "cutoff_len",
    "query_len": "cutoff_len",
    "ppo_epoch": "ppo_epochs",
    "policy_clip_eps": "clip_range",
    "value_clip_eps": "clip_range_value",
    "reward_clip_eps": "reward_clip",
    "num_episodes": "num_train_epochs",
    "train_file_path": "dataset",
    "model_path": "model_name_or_path",
    "ori_model_path": "model_name_or_path",
}
"""What a key of another program is called here, for the message about an unknown key; values may mean other things."""
