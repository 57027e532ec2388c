"""Keys of a training run: steps, optimizer, saving, evaluation and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run: how long, how fast, what is saved and when it is evaluated."""

    output_dir: str = option("", help="Folder of the run; required by `posttrain train`.", path=True)
    overwrite_output_dir: bool = option(False, help="Start afresh in a folder that holds a run already.")
    do_train: bool = option(
        True, help="Must be true to train; taken as false where only `do_eval` or `do_predict` is set."
    )
    do_eval: bool = option(
        False, help="Accepted for compatibility; a run with held-out rows is always evaluated at its end."
    )
    do_predict: bool = option(False, help="Accepted for compatibility; predictions are made by `posttrain generate`.")
    per_device_train_batch_size: int = option(8, help="Rows per micro-batch; pairs in stage rm.", minimum=1)
    per_device_eval_batch_size: int = option(8, help="Rows per batch in evaluation and generation.", minimum=1)
    gradient_accumulation_steps: int = option(1, help="Micro-batches per optimizer step.", minimum=1)
    max_tokens_per_microbatch: int | None = option(
        None,
        help="Split micro-batches further so that each holds at most this many tokens; changes no result. null is 512 "
        "on a CPU and what fits into the memory of a GPU; where memory runs out, it is halved.",
        minimum=1,
    )
    learning_rate: float = option(5e-5, help="Highest learning rate.", minimum=0)
    num_train_epochs: float = option(3.0, help="Passes over the data.", above=0)
    max_steps: int = option(-1, help="Stop after this many optimizer steps; -1 goes by epochs.", minimum=-1)
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = option("linear", help="Course of the learning rate after warm-up.")
    lr_scheduler_kwargs: str | None = option(
        None,
        help="Numbers of that course under their names in transformers, a block or JSON: `min_lr` or `min_lr_rate` "
        "(cosine_with_min_lr), `num_cycles`, `power`, `lr_end`, `num_decay_steps`, `min_lr_ratio` ...",
    )
    warmup_ratio: float = option(0.0, help="Share of the steps in which the rate rises.", minimum=0, maximum=1)
    warmup_steps: int = option(0, help="Number of steps in which the rate rises; wins over `warmup_ratio`.", minimum=0)
    weight_decay: float = option(0.0, help="Decoupled weight decay of AdamW.", minimum=0)
    adam_beta1: float = option(0.9, help="Decay of Adam's first moment.", minimum=0, below=1)
    adam_beta2: float = option(0.999, help="Decay of Adam's second moment.", minimum=0, below=1)
    adam_epsilon: float = option(1e-8, help="Keeps Adam's division finite.", above=0)
    max_grad_norm: float = option(1.0, help="Clip the gradient to this norm; 0 does not clip.", minimum=0)
    optim: str = option(
        "adamw_torch",
        help="Optimizer, by its name in transformers: `adamw_torch`, `sgd`, `adagrad`, `rmsprop`, `adafactor`; through "
        "bitsandbytes `adamw_8bit`, `paged_adamw_8bit`, `paged_adamw_32bit`, `lion_8bit`, `ademamix_8bit` ...",
    )
    optim_args: str | None = option(None, help="Further arguments of the optimizer, such as `momentum=0.9`.")
    bf16: bool = option(False, help="Compute in bfloat16 where the device can; a CPU computes in float32.")
    fp16: bool = option(False, help="Compute in float16 where the device can; a CPU computes in float32.")
    gradient_checkpointing: bool = option(False, help="Recompute activations in the backward pass to save memory.")
    activation_offloading: bool = option(
        False,
        help="Keep activations in the computer's memory between forward and backward pass, to save memory of the GPU; "
        "instead of `gradient_checkpointing`.",
    )
    disable_gradient_checkpointing: bool = option(
        False, help="Accepted for compatibility; checkpointing is off unless `gradient_checkpointing` is set."
    )
    disable_shuffling: bool = option(False, help="Take the rows in their order.")
    seed: int = option(42, help="Seed of everything random.", minimum=0)
    data_seed: int | None = option(None, help="Seed of the order of the rows; null is `seed`.", minimum=0)
    logging_steps: int = option(10, help="Write a line of metrics every so many steps.", minimum=1)
    logging_strategy: Literal["no", "steps", "epoch"] = option(
        "steps", help="When metrics of training are written; `no` leaves evaluations alone in the log."
    )
    logging_first_step: bool = option(False, help="Write metrics of the first step too.")
    plot_loss: bool = option(False, help="Draw the curves of the run as PNG files.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")
    save_strategy: Literal["no", "steps", "epoch"] = option("steps", help="When checkpoints are written.")
    save_steps: int = option(500, help="Steps between checkpoints.", minimum=1)
    save_total_limit: int | None = option(None, help="Keep only this many checkpoints.", minimum=1)
    save_only_model: bool = option(
        False, help="Write checkpoints without what resuming needs; no run can continue from them."
    )
    resume_from_checkpoint: bool | str | None = option(
        None, help="true: continue from the newest checkpoint; a folder: from that one.", path=True
    )
    eval_strategy: Literal["no", "steps", "epoch"] = option("no", help="When the run is evaluated.")
    eval_steps: int | None = option(None, help="Steps between evaluations; null is `logging_steps`.", minimum=1)
    eval_on_start: bool = option(False, help="Evaluate before the first step too; stages pt and those that sample do.")
    eval_delay: float = option(
        0.0, help="Steps, or epochs with `eval_strategy: epoch`, before the first evaluation.", minimum=0
    )
    load_best_model_at_end: bool = option(False, help="Keep the best checkpoint and end with it.")
    metric_for_best_model: str | None = option(
        None,
        help="Metric that decides; null is eval_loss, in stages that sample eval_reward, or "
        "eval_judge_reward where `alarm_reward_funcs` are set.",
    )
    greater_is_better: bool | None = option(None, help="Whether more is better; null is false for a loss, else true.")
    early_stopping_steps: int | None = option(
        None, help="Stop when this many evaluations in a row bring no improvement.", minimum=1
    )
    measure_limits: bool | None = option(
        None,
        help="Measure first, for about a second, what the machine can do, so that the log says how far from that each "
        "phase is; null does so for models of 10 million weights and more.",
    )
    ddp_timeout: int = option(1800, help="Seconds that the processes of one run wait for each other.", minimum=0)
    dataloader_num_workers: int = option(0, help="Without effect, with a note: batches are made in the run.", minimum=0)
