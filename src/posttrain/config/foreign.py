"""Keys of LLaMA-Factory, Hugging Face and TRL that have no field here: renamed, ignored with a note, or refused.

No key of LLaMA-Factory is unknown: a file written for it either means the same here, or says in one sentence what is
different. A refused key is let through, with a note, where its value asks for nothing (``use_dora: false``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A known key without a field: what happens to it, why, and the values that ask for nothing."""

    action: Literal["ignore", "refuse"]
    sentence: str
    harmless: tuple[object, ...] = ()

    def asks_for_nothing(self, value: object) -> bool:
        """True where the value is empty, false, or the default that changes nothing."""
        if value is None or value is False or value in ("", [], {}):
            return True
        text = str(value).strip().lower()
        return text in ("none", "null", "false") or text in (str(item).lower() for item in self.harmless)


REFUSED_VALUES: Mapping[tuple[str, str], str] = {
    ("pref_loss", "kto_pair"): "is not supported; apo_zero is its successor for pairs, and stage: kto takes answers "
    "judged one by one",
    ("finetuning_type", "oft"): "is not one of lora, full, freeze; use lora, whose adapters train the same layers",
    **{
        ("quantization_method", name): "is not supported; the base is quantised while it is loaded, by bitsandbytes "
        "(quantization_method: bnb)"
        for name in ("gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8")
    },
    ("lr_scheduler_type", "cosine_warmup_with_min_lr"): "is not supported; cosine_with_min_lr is the same curve after "
    "warm-up",
    ("lr_scheduler_type", "reduce_lr_on_plateau"): "is not supported; use linear or cosine with early_stopping_steps",
}
"""Values that the key has elsewhere; each completes the sentence "`key: value` ..."."""

_IGNORED: tuple[tuple[str, str], ...] = (
    (
        "attention is computed by posttrain's own packed path, whatever kernel is asked for",
        "flash_attn use_v1_kernels enable_liger_kernel use_liger_kernel liger_kernel_config use_kv_cache use_cache "
        "torch_compile torch_compile_backend torch_compile_mode jit_mode_eval use_ipex torchdynamo use_unsloth_gc "
        "use_reentrant_gc gradient_checkpointing_kwargs activation_checkpointing_kwargs block_diag_attn kernel_config",
    ),
    (
        "completions are decoded by posttrain's own slot decoder (num_rollout_slots)",
        "infer_backend vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
        "sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend sample_backend",
    ),
    (
        "it only counts with beam search, and completions are sampled",
        "length_penalty",
    ),
    (
        "completions of a dataset are written by `posttrain generate`",
        "predict_with_generate generation_config sortish_sampler",
    ),
    (
        "encoded rows are kept under a lock, on shared disks and others alike",
        "data_shared_file_system",
    ),
    (
        "batches are made in the run, of whole rows, padded at the right, the last one of an epoch included",
        "reserved_label_len "
        "ignore_pad_token_for_loss remove_unused_columns label_names length_column_name dataloader_drop_last "
        "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_in_order "
        "dataloader_multiprocessing_context batching_strategy batching_workers",
    ),
    (
        "the tokenizer's own chat template decides",
        "tool_format enable_thinking preserve_thinking",
    ),
    (
        "every evaluation set is reported in one figure",
        "eval_on_each_dataset",
    ),
    (
        "posttrain works on text",
        "media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model",
    ),
    (
        "the model is loaded whole, onto one device",
        "low_cpu_mem_usage offload_folder moe_aux_loss_coef",
    ),
    (
        "sums that need it are computed in float32",
        "upcast_layernorm upcast_lmhead_output half_precision_backend fp16_opt_level fp16_backend fp16_full_eval "
        "bf16_full_eval tf32 compute_dtype bnb_4bit_compute_dtype bnb_4bit_quant_storage "
        "fp8_backend fp8_enable_fsdp_float8_all_gather",
    ),
    (
        "give SwanLab's key in the environment (SWANLAB_API_KEY), not in a file that is copied into output_dir",
        "swanlab_api_key",
    ),
    (
        "give tokens for model hubs in the environment (HF_TOKEN), not in a file that is copied into output_dir",
        "hf_hub_token ms_hub_token om_hub_token hub_token",
    ),
    (
        "it is derived from cutoff_len",
        "model_max_length",
    ),
    (
        "it only matters together with an export that quantises, which posttrain does not make",
        "export_quantization_dataset export_quantization_nsamples export_quantization_maxlen",
    ),
    (
        "it only matters with use_galore, which posttrain does not have",
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise",
    ),
    (
        "it only matters with use_apollo, which posttrain does not have",
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type "
        "apollo_scale_type apollo_layerwise apollo_scale_front",
    ),
    (
        "it only matters with use_badam, which posttrain does not have",
        "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
        "badam_verbose",
    ),
    (
        "it only matters with finetuning_type oft, which posttrain does not have",
        "module_dropout oft_rank oft_block_size oft_target",
    ),
    (
        "it belongs to a loss that posttrain does not have",
        "asft_alpha eaft_alpha",
    ),
    (
        "it belongs to KTransformers, which posttrain does not use",
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size",
    ),
    (
        "metrics go to trainer_log.jsonl and what `report_to` names",
        "swanlab_lark_webhook_url swanlab_lark_secret project trackio_space_id trackio_bucket_id "
        "trackio_static_space_id log_level log_level_replica log_on_each_node",
    ),
    (
        "TensorBoard events lie in runs/ of output_dir",
        "logging_dir",
    ),
    (
        "every run reports tokens per second, time and peak memory already",
        "include_num_input_tokens_seen include_tokens_per_second include_effective_tokens_per_second "
        "include_for_metrics include_inputs_for_metrics skip_memory_metrics profiler_output_dir profiler_wait_steps "
        "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory "
        "profiler_with_stack profile_modules enable_torch_profiler debug print_param_status",
    ),
    (
        "a loss that is not finite always stops the run",
        "logging_nan_inf_filter",
    ),
    (
        "the loss is always divided by one count over the whole step, however it is split",
        "average_tokens_across_devices auto_find_batch_size eval_accumulation_steps torch_empty_cache_steps",
    ),
    (
        "evaluation runs at its steps and at the end, and reports the metrics of its stage",
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object "
        "batch_eval_metrics use_legacy_prediction_loop compute_accuracy",
    ),
    (
        "checkpoints are always safetensors and JSON, and hold everything that resuming needs",
        "save_safetensors save_on_each_node ignore_data_skip restore_callback_states_from_checkpoint "
        "enable_jit_checkpoint save_ckpt_as_hf",
    ),
    (
        "a run is deterministic for its seed",
        "full_determinism",
    ),
    (
        "the GPU is used where there is one; set CUDA_VISIBLE_DEVICES to an empty value to stay on the CPU",
        "use_cpu no_cuda use_mps_device",
    ),
    (
        "torchrun says how many processes share a run, and each holds the whole model",
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend local_rank "
        "accelerator_config mp_parameters ray_scope ray_num_workers ray_init_kwargs master_addr master_port "
        "hyper_parallel_args hyper_parallel_cp_size megatron_bridge_args tensor_model_parallel_size "
        "pipeline_model_parallel_size expert_model_parallel_size context_parallel_size "
        "virtual_pipeline_model_parallel_size sequence_parallel recompute_granularity recompute_method "
        "recompute_num_layers account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
        "bias_activation_fusion apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm "
        "moe_token_dispatcher_type calculate_per_token_loss use_distributed_optimizer overlap_param_gather "
        "overlap_grad_reduce use_packed_sequences mixed_precision megatron_pretrained_checkpoint "
        "export_hf_on_finish extra_config dp_size cp_size cp_mode mp_replicate_size mp_shard_size dist_timeout",
    ),
    (
        "push_to_hub uploads once, when the run has come to its end",
        "hub_strategy hub_always_push",
    ),
    (
        "it belongs to the question sets of `llamafactory-cli eval`; `posttrain eval` measures your own data",
        "task_dir lang n_shot download_mode",
    ),
    (
        "it describes tokens that would be added, and the vocabulary is not changed",
        "init_special_tokens",
    ),
)

_REFUSED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    (
        "exports are unquantised safetensors; export first and quantise the folder with the program that will serve it",
        (),
        "export_quantization_bit",
    ),
    (
        "the BCO term beside a preference loss needs the mean reward of other batches; use pref_loss: nca_pair or "
        "stage: kto, which also say where each answer should go",
        (0, 0.0),
        "pref_bco_weight",
    ),
    (
        "tokens of an answer count the same wherever they stand; against long answers use pref_loss: simpo, whose "
        "reward is a mean over tokens",
        (1, 1.0),
        "ld_alpha",
    ),
    (
        "the vocabulary is not changed; give a tokenizer and model that have these tokens already",
        (),
        "resize_vocab add_tokens add_special_tokens new_special_tokens new_special_tokens_config split_special_tokens",
    ),
    (
        "positions are those the model was made with; choose a base with the context length you need",
        (),
        "rope_scaling shift_attn mixture_of_depths",
    ),
    (
        "posttrain has a packed training path of its own that already skips padding; remove the line",
        (),
        "use_unsloth use_kt use_mca use_megatron_bridge use_hyper_parallel",
    ),
    (
        "weights start from a folder; to start from nothing, save a randomly initialised model with transformers",
        (),
        "train_from_scratch init_config",
    ),
    (
        "give the folder of the adapter itself in adapter_name_or_path",
        (),
        "adapter_folder",
    ),
    (
        "the layers of the model are not expanded; use finetuning_type: lora or freeze",
        (),
        "use_llama_pro",
    ),
    (
        "the optimizer is what optim names, such as adamw_torch, adamw_8bit, lion_8bit or adafactor; remove the line",
        (),
        "use_galore use_apollo use_badam use_adam_mini use_muon optim_target_modules",
    ),
    (
        "SFT learns by plain cross-entropy, with use_dft_loss by its reweighted form; remove the line",
        (0, 0.0),
        "use_asft_loss use_eaft_loss label_smoothing_factor",
    ),
    (
        "computation is in float32, bfloat16 or float16; set bf16: true on a GPU",
        (),
        "fp8",
    ),
    (
        "posttrain works on text",
        (),
        "visual_inputs train_mm_proj_only",
    ),
    (
        "each process holds the whole model; remove the line, and lower per_device_train_batch_size or "
        "max_tokens_per_microbatch if memory is short",
        (),
        "deepspeed fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap "
        "parallelism_config dist_config",
    ),
    (
        "the model is always a causal language model; quantization_bit quantises its base",
        (),
        "model_class quant_config",
    ),
)


def _table() -> Iterator[tuple[str, Foreign]]:
    for sentence, keys in _IGNORED:
        for key in keys.split():
            yield key, Foreign(action="ignore", sentence=sentence)
    for sentence, harmless, keys in _REFUSED:
        for key in keys.split():
            yield key, Foreign(action="refuse", sentence=sentence, harmless=harmless)


FOREIGN: Mapping[str, Foreign] = dict(_table())
"""Known keys without a field, by name."""
