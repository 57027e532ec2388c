"""Rules about several keys at once: what cannot work together, and what works but looks unintended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from posttrain.config.alarm_rules import alarm_cautions, alarm_problems
from posttrain.config.data_rules import data_cautions, data_problems
from posttrain.config.defaults import stage_defaults
from posttrain.config.eval_rules import eval_cautions, eval_problems
from posttrain.config.judge_rules import judged_reward_problems, label_problems
from posttrain.config.model_rules import model_rules, quantization_cautions
from posttrain.config.reward_rules import reward_problems
from posttrain.config.run import KEYS, Command, RunConfig
from posttrain.config.stages import GROUP_STAGES, ONLINE_STAGES, concerns, is_online
from posttrain.config.train_rules import idle_keys, reference_problems, schedule_problems

Finding = tuple[str, str]
"""A key, and the sentence about it that the loader prefixes with the line on which the key stands."""

_NEEDED: tuple[tuple[str, str, str], ...] = (
    ("output_dir", "the folder that the run is written to", "output_dir: runs/sft"),
    ("dataset", "names from dataset_info.json, or paths of data files", "dataset: data/train.jsonl"),
)


def problems(config: RunConfig, command: Command) -> list[Finding]:
    """What keeps the command from working."""
    rules = [_numbers, *model_rules(command)]
    if command == "train":
        rules += [_required, _stage, _data, data_problems, _adapters, _reward, _online, _ppo, _preference]
        rules += [_evaluation, _best_model, _precision, schedule_problems, reference_problems]
    if command == "loop":
        rules += [_stage, _adapters, _online, _ppo, _precision, schedule_problems]
    if command == "data":
        rules += [_stage, _data, data_problems]
    if command == "export":
        rules += [_export]
    if command == "train":
        rules += [judged_reward_problems, alarm_problems]
    if command == "label":
        rules += [label_problems]
    if command == "eval":
        rules += [eval_problems]
    return [finding for rule in rules for finding in rule(config)]


def cautions(config: RunConfig, command: Command) -> list[str]:
    """What works, and may surprise."""
    rules: list[Callable[[RunConfig], Iterator[str]]] = [_legacy_export]
    if command == "train":
        rules += [_foreign_stage, _batching, _sampling, _small_beta, _double_warmup, _predict, _save_only]
        rules += [data_cautions, alarm_cautions, idle_keys]
    if command == "loop":
        rules += [_sampling, _double_warmup]
    if command == "eval":
        rules += [eval_cautions]
    if command == "export":
        rules += [quantization_cautions]
    return [sentence for rule in rules for sentence in rule(config)]


def _required(config: RunConfig) -> Iterator[Finding]:
    for key, meaning, example in _NEEDED:
        if not config.value(key) and not (key == "dataset" and config.data.tokenized_path):
            yield (
                key,
                f"`{key}` is missing: stage {config.method.stage} needs {meaning}; add a line such as `{example}`",
            )
    if not config.train.do_train:
        yield (
            "do_train",
            "`posttrain train` trains; with `do_train: false` give the same file to `posttrain eval` to measure, or to "
            "`posttrain generate` to predict",
        )


def _stage(config: RunConfig) -> Iterator[Finding]:
    stage, data = config.method.stage, config.data
    if stage not in ("pt", "sft") and data.neat_packing:
        yield "neat_packing", f"`neat_packing` is for stage pt; remove it from stage {stage}"
    elif stage not in ("pt", "sft") and data.packing:
        yield "packing", f"`packing` is for stage pt; remove it from stage {stage}"
    for key in ("train_on_prompt", "mask_history"):
        if config.value(key) and stage != "sft":
            yield key, f"`{key}` is for stage sft; remove it from stage {stage}"
    if data.train_on_prompt and data.mask_history:
        yield "mask_history", "`mask_history` and `train_on_prompt` contradict each other; keep one"
    if data.text_column and stage not in ("pt", "sft"):
        yield "text_column", f"`text_column` is for stages pt and sft; remove it from stage {stage}"
    if config.method.finetuning_type == "freeze" and config.method.freeze_trainable_layers == 0:
        yield "freeze_trainable_layers", "`freeze_trainable_layers: 0` would train no layer; give at least 1 or -1"


def _data(config: RunConfig) -> Iterator[Finding]:
    if config.data.val_size and config.data.eval_dataset:
        yield "val_size", "`val_size` and `eval_dataset` both say what is evaluated on; keep one"
    if config.data.neat_packing and not config.data.packing:
        yield "packing", "`packing: false` contradicts `neat_packing: true`; remove one"


def _adapters(config: RunConfig) -> Iterator[Finding]:
    method = config.method
    if config.model.adapter_name_or_path and method.finetuning_type != "lora":
        yield (
            "adapter_name_or_path",
            f"`adapter_name_or_path` needs finetuning_type: lora, not {method.finetuning_type}; to train all weights "
            "on top of an adapter, merge it first with `posttrain export` and put the merged folder into "
            "model_name_or_path",
        )
    if method.finetuning_type == "lora" and not method.lora_target:
        yield "lora_target", "`lora_target` is empty; give `all` or the names of linear layers, such as q_proj,v_proj"


def _reward(config: RunConfig) -> Iterator[Finding]:
    if is_online(config.method.stage):
        yield from reward_problems(config.reward, config.method.stage)


def _online(config: RunConfig) -> Iterator[Finding]:
    stage, online, group = config.method.stage, config.online, config.generation.num_return_sequences
    if not is_online(stage):
        return
    if config.method.lora_dropout:
        yield (
            "lora_dropout",
            f"`lora_dropout` must be 0 in stage {stage}: with dropout the policy that trains is not the one that "
            "sampled",
        )
    compares = stage in ("rloo", "grpo", "online_dpo") or (
        stage == "reinforce" and online.reinforce_baseline == "group"
    )
    if compares and group < 2:
        yield (
            "num_return_sequences",
            f"`num_return_sequences: {group}` leaves stage {stage} nothing to compare: it learns from the differences "
            "between completions of one prompt; give at least 2",
        )
    if online.dynamic_sampling and group < 2:
        yield (
            "dynamic_sampling",
            "`dynamic_sampling` compares completions of one prompt; set num_return_sequences to 2 or more",
        )
    if stage == "remax" and config.reward.reward_part_norm == "batch":
        yield (
            "reward_part_norm",
            "`reward_part_norm: batch` puts sampled and greedy completions on two scales, which stage remax compares; "
            "scale the parts with reward_weights instead",
        )
    if online.kl_in == "loss" and online.ppo_target:
        yield "ppo_target", "`ppo_target` steers the KL penalty in the reward; remove it, or set `kl_in: reward`"


def _ppo(config: RunConfig) -> Iterator[Finding]:
    if config.method.stage != "ppo":
        return
    kind, fitting = config.method.finetuning_type, "adapter" if config.method.finetuning_type == "lora" else "model"
    if config.ppo.critic not in ("value_head", fitting):
        yield (
            "critic",
            f"`critic: {config.ppo.critic}` does not go with finetuning_type: {kind}; a critic of its own is then "
            f"`critic: {fitting}`",
        )


def _preference(config: RunConfig) -> Iterator[Finding]:
    stage, preference = config.method.stage, config.preference
    if preference.dpo_label_smoothing and stage in ("dpo", "online_dpo"):
        smooth = ("sigmoid", "robust", "exo_pair") + (("cpo",) if stage == "dpo" else ())
        if preference.pref_loss not in smooth:
            yield (
                "dpo_label_smoothing",
                f"`dpo_label_smoothing` does not go with pref_loss: {preference.pref_loss}; it is for "
                f"{', '.join(smooth)}",
            )
    if preference.pref_loss == "exo_pair" and not preference.dpo_label_smoothing and stage in ("dpo", "online_dpo"):
        yield "pref_loss", "`pref_loss: exo_pair` needs dpo_label_smoothing above 0, such as 0.001"
    if stage == "online_dpo" and preference.pref_loss in ("orpo", "cpo", "simpo"):
        yield (
            "pref_loss",
            f"`pref_loss: {preference.pref_loss}` is for stage dpo; stage online_dpo takes sigmoid, ipo ...",
        )


def _numbers(config: RunConfig) -> Iterator[Finding]:
    data, generation, train = config.data, config.generation, config.train
    if data.val_size >= 1 and not float(data.val_size).is_integer():
        yield "val_size", f"`val_size` must be a share below 1 or a whole number of rows, not {data.val_size}"
    if generation.min_new_tokens > generation.max_new_tokens:
        yield (
            "min_new_tokens",
            f"`min_new_tokens: {generation.min_new_tokens}` is more than `max_new_tokens: {generation.max_new_tokens}`",
        )
    if train.max_steps == 0:
        yield "max_steps", "`max_steps: 0` would train nothing; give a number of steps, or -1 to go by num_train_epochs"


def _evaluation(config: RunConfig) -> Iterator[Finding]:
    if config.data.val_size or config.data.eval_dataset:
        return
    advice = "add `val_size: 0.1` to hold rows out, or name an `eval_dataset`"
    if config.train.eval_strategy != "no":
        strategy = config.train.eval_strategy
        yield "eval_strategy", f"`eval_strategy: {strategy}` has no rows to evaluate on; {advice}"
    elif config.train.do_eval:
        yield "do_eval", f"`do_eval` has no rows to evaluate on; {advice}"


def _best_model(config: RunConfig) -> Iterator[Finding]:
    train = config.train
    for key in ("load_best_model_at_end", "early_stopping_steps"):
        if config.value(key) and train.eval_strategy == "no":
            yield key, f"`{key}` compares evaluations; set `eval_strategy` to steps or epoch"
    if not train.load_best_model_at_end or train.eval_strategy == "no":
        return
    if train.save_strategy != train.eval_strategy:
        yield (
            "load_best_model_at_end",
            f"`load_best_model_at_end` needs a checkpoint at evaluations; set `save_strategy: {train.eval_strategy}` "
            f"(it is {train.save_strategy})",
        )
    elif train.save_strategy == "steps" and train.save_steps % (train.eval_steps or 1):
        yield (
            "save_steps",
            f"`load_best_model_at_end` needs `save_steps` ({train.save_steps}) to be a multiple of `eval_steps` "
            f"({train.eval_steps})",
        )


def _precision(config: RunConfig) -> Iterator[Finding]:
    if config.train.bf16 and config.train.fp16:
        yield "fp16", "`bf16` and `fp16` exclude each other; keep one"
    if config.train.gradient_checkpointing and config.train.disable_gradient_checkpointing:
        yield (
            "gradient_checkpointing",
            "`gradient_checkpointing` and `disable_gradient_checkpointing` contradict each other",
        )


def _export(config: RunConfig) -> Iterator[Finding]:
    if not config.export.export_dir:
        yield (
            "export_dir",
            "`export_dir` is missing: export needs the folder to write; add a line such as `export_dir: merged`",
        )


def _legacy_export(config: RunConfig) -> Iterator[str]:
    if config.export.export_legacy_format:
        yield "`export_legacy_format: true` is ignored: weights are always written as safetensors"


def _foreign_stage(config: RunConfig) -> Iterator[str]:
    here = config.method.stage
    for group, stages in GROUP_STAGES.items():
        if concerns(group, here):
            continue
        changed = [
            f"`{key.name}`"
            for key in KEYS.values()
            if key.group == group
            and key.name in config.sources
            and config.value(key.name) not in (key.default, stage_defaults(stages[0]).get(key.name, key.default))
        ]
        if changed:
            verb = "concerns" if len(changed) == 1 else "concern"
            named = "stages that sample" if stages == ONLINE_STAGES else f"stage {', '.join(stages)}"
            yield f"{', '.join(changed)} {verb} {named} and changes nothing in stage {here}"


def _batching(config: RunConfig) -> Iterator[str]:
    stage, data = config.method.stage, config.data
    if stage == "sft" and data.packing:
        key = "neat_packing" if data.neat_packing else "packing"
        yield (
            f"`{key}: true` changes nothing in stage sft: rows are computed without padding and see only themselves "
            "in any case, and `per_device_train_batch_size` counts rows; raise it where packing was meant to put "
            "several into one"
        )
    if is_online(stage) and data.group_by_length:
        yield (
            f"`group_by_length: true` changes nothing in stage {stage}: prompts are taken in the order of `data_seed`, "
            "and neither sampling nor training pads them"
        )


def _sampling(config: RunConfig) -> Iterator[str]:
    stage = config.method.stage
    if not is_online(stage):
        return
    generation = config.generation
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    cutting = [f"{key} {config.value(key)}" for key, value in neutral.items() if config.value(key) != value]
    if not generation.do_sample:
        yield f"`do_sample: false` gives stage {stage} one greedy completion per prompt and nothing to explore"
    elif cutting:
        yield (
            f"stage {stage} samples with {', '.join(cutting)}, while the policy's own log-probabilities train; the KL "
            "estimate is biased by what is cut off (leave these keys out to sample from the policy itself)"
        )


def _small_beta(config: RunConfig) -> Iterator[str]:
    beta = config.preference.pref_beta
    if config.method.stage == "dpo" and config.preference.pref_loss == "simpo" and beta < 1:
        yield f"`pref_beta: {beta:g}` is DPO's scale; simpo, whose reward is a mean over tokens, usually takes 2 to 10"


def _double_warmup(config: RunConfig) -> Iterator[str]:
    if config.train.warmup_steps and config.train.warmup_ratio:
        yield "`warmup_steps` and `warmup_ratio` are both set; `warmup_steps` wins"


def _predict(config: RunConfig) -> Iterator[str]:
    if config.train.do_predict:
        yield "`do_predict: true` predicts nothing in training: give the same file to `posttrain generate` afterwards"


def _save_only(config: RunConfig) -> Iterator[str]:
    if config.train.save_only_model and config.train.save_strategy != "no":
        yield "`save_only_model: true`: an interrupted run cannot be continued from its checkpoints"
