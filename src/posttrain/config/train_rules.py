"""Rules about the course of a run: its schedule, its reference, and keys that are taken and do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from posttrain.config.run import KEYS, RunConfig
from posttrain.config.schedules import options_problem, schedule_options
from posttrain.config.stages import is_online

Finding = tuple[str, str]

_IDLE: tuple[tuple[str, Callable[[RunConfig], bool], str], ...] = (
    (
        "dataloader_num_workers",
        lambda c: True,
        "batches are made in the run itself, from rows that are encoded already",
    ),
    ("pissa_iter pissa_convert", lambda c: not c.method.pissa_init, "it belongs to `pissa_init: true`"),
    ("loraplus_lr_embedding", lambda c: not c.method.loraplus_lr_ratio, "it belongs to `loraplus_lr_ratio`"),
    (
        "quantization_type double_quantization quantization_device_map",
        lambda c: not c.model.quantization_bit,
        "the base is quantised where `quantization_bit` is 4 or 8",
    ),
    (
        "swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_logdir",
        lambda c: not {"swanlab", "all"} & set(c.trackers.trackers),
        "SwanLab is used where `report_to` names it",
    ),
    (
        "hub_model_id hub_private_repo hub_revision",
        lambda c: not c.hub.push_to_hub,
        "a run is uploaded where `push_to_hub: true` is set",
    ),
    ("export_hub_model_id", lambda c: True, "it is for `posttrain export`; a run is uploaded by `push_to_hub: true`"),
    ("mix_strategy", lambda c: len(c.data.dataset) < 2, "there is one dataset"),
    (
        "warmup_steps warmup_ratio",
        lambda c: c.train.lr_scheduler_type == "constant",
        "`lr_scheduler_type: constant` has no warm-up; constant_with_warmup has",
    ),
    ("buffer_size", lambda c: not c.data.streaming, "it belongs to `streaming: true`"),
    ("overwrite_cache", lambda c: c.data.streaming, "rows that are streamed are not kept"),
    ("num_train_epochs", lambda c: c.data.streaming, "a stream is read for `max_steps`"),
    (
        "train_after_end_of_turn",
        lambda c: c.method.stage not in ("sft", "dpo", "kto"),
        "it is for stages sft, dpo and kto",
    ),
    ("prompt_template question_template", lambda c: c.method.stage == "pt", "stage pt reads documents as they are"),
    (
        "truncation_side",
        lambda c: c.method.stage == "pt" or (is_online(c.method.stage) and not c.data.cut_prompts),
        "nothing is cut there: documents are packed, and prompts that are too long are left out",
    ),
    (
        "cut_prompts",
        lambda c: not is_online(c.method.stage),
        "it is for stages that sample; rows that are too long are cut in the others anyway",
    ),
    (
        "adam_beta1 adam_beta2",
        lambda c: any(name in c.train.optim for name in ("adafactor", "sgd", "adagrad", "rmsprop", "ademamix")),
        "this `optim` has none, or its own; set them in `optim_args`",
    ),
    (
        "adam_epsilon",
        lambda c: any(name in c.train.optim for name in ("adafactor", "sgd", "adagrad", "rmsprop", "lion")),
        "this `optim` has none, or its own; set it in `optim_args`",
    ),
    (
        "overwrite_cache",
        lambda c: bool(c.data.tokenized_path),
        "rows are those in `tokenized_path`; remove that folder to encode them anew",
    ),
)
"""Keys, when they change nothing, and why."""


def schedule_problems(config: RunConfig) -> Iterator[Finding]:
    """Options that the schedule does not have, or that it needs."""
    train = config.train
    problem = options_problem(train.lr_scheduler_type, schedule_options(train.lr_scheduler_kwargs))
    if problem is not None:
        key = "lr_scheduler_kwargs" if train.lr_scheduler_kwargs else "lr_scheduler_type"
        yield key, f"`lr_scheduler_kwargs` {problem}"
    options = schedule_options(train.lr_scheduler_kwargs)
    for name in ("min_lr", "lr_end"):
        least = options.get(name)
        if problem is None and least is not None and least > train.learning_rate:
            yield (
                "lr_scheduler_kwargs",
                f"`lr_scheduler_kwargs` has `{name}: {least}`, more than `learning_rate: {train.learning_rate}`: the "
                "rate would rise",
            )
    if train.eval_delay and train.eval_strategy == "no":
        yield "eval_delay", "`eval_delay` puts off evaluations; set `eval_strategy` to steps or epoch"


def reference_problems(config: RunConfig) -> Iterator[Finding]:
    """A reference of its own where there is none, or where the stage has another."""
    stage, preference = config.method.stage, config.preference
    for key in ("ref_model", "ref_model_adapters"):
        if not config.value(key):
            continue
        if is_online(stage):
            yield (
                key,
                f"`{key}` is for stages dpo and kto; the reference of stage {stage} is the actor as it starts, at no "
                "extra memory: put what it should be into model_name_or_path and adapter_name_or_path",
            )
        elif stage == "dpo" and preference.pref_loss in ("orpo", "cpo", "simpo"):
            yield key, f"`{key}`: pref_loss: {preference.pref_loss} has no reference; remove the line"


def idle_keys(config: RunConfig) -> Iterator[str]:
    """Keys that are accepted and change nothing, where a file sets them to more than their default."""
    for keys, is_idle, reason in _IDLE:
        for key in keys.split():
            if key in config.sources and config.value(key) != KEYS[key].default and is_idle(config):
                yield f"`{key}: {config.value(key)}` changes nothing: {reason}"
