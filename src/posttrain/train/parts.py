"""The parts of a run, and those that follow from the configuration alone: its length and its engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from posttrain.algorithms import make_algorithm
from posttrain.config import RunConfig, is_online
from posttrain.config.optim_names import optimizer_options
from posttrain.config.schedules import schedule_options
from posttrain.data.datasets import Splits
from posttrain.engine import Engine, OptimizerSettings, Processes
from posttrain.errors import UserError
from posttrain.models.assemble import Assembly
from posttrain.models.roles import Roles
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan, learning_rate_factor, steps_plan
from posttrain.types import Role


@dataclass(frozen=True)
class Parts:
    """What a run is made of, in the order in which it is made."""

    config: RunConfig
    directory: RunDirectory
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    plan: StepsPlan
    assembly: Assembly
    engine: Engine

    @property
    def steps_done(self) -> int:
        """Steps as the user counts them: iterations of an online stage, else optimizer steps."""
        return self.engine.iteration if is_online(self.config.method.stage) else self.engine.step

    @property
    def rows_per_step(self) -> int:
        """Rows (pt, sft, kto), pairs (rm, dpo) or completions (online stages) of one step."""
        buffered = self.config.online.ppo_buffer_size if is_online(self.config.method.stage) else 1
        return optimizer_rows(self.config, self.engine.processes.size) * buffered

    def save(self, folder: Path) -> None:
        """Fill a checkpoint folder: the model as users load it, what trains, and what else resuming needs."""
        self.assembly.save(folder, self.tokenizer)
        if self.config.train.save_only_model:
            self.engine.save_weights(folder)  # the best checkpoint is loaded from them at the end
        else:
            self.engine.save(folder)


def optimizer_rows(config: RunConfig, num_processes: int = 1) -> int:
    """Rows, pairs or completions of one optimizer step, all processes together."""
    return config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps * num_processes


def make_plan(config: RunConfig, num_rows: int, num_processes: int = 1) -> StepsPlan:
    """How long the run is: optimizer steps, in online stages iterations.

    One iteration takes batch x accumulation x processes x ``ppo_buffer_size`` completions,
    ``num_return_sequences`` of each prompt. A run whose rows are streamed is one epoch of ``max_steps``.

    Raises:
        UserError: if completions and prompts of an iteration do not divide.
    """
    settings = config.train
    if not is_online(config.method.stage):
        size = settings.per_device_train_batch_size * num_processes
        accumulation = settings.gradient_accumulation_steps
    else:
        group, minibatch = config.generation.num_return_sequences, optimizer_rows(config, num_processes)
        of_processes = f" x {num_processes} processes" if num_processes > 1 else ""
        if minibatch % group:
            raise UserError(
                f"num_return_sequences: {group} does not divide per_device_train_batch_size x "
                f"gradient_accumulation_steps{of_processes} = {minibatch}; a step takes whole groups of completions"
            )
        size, accumulation = minibatch * config.online.ppo_buffer_size // group, 1
    return steps_plan(
        settings.max_steps * size * accumulation if config.data.streaming else num_rows,
        size,
        accumulation,
        settings.num_train_epochs,
        settings.max_steps,
        warmup_steps=settings.warmup_steps,
        warmup_ratio=settings.warmup_ratio,
    )


def make_engine(config: RunConfig, roles: Roles, plan: StepsPlan, processes: Processes | None = None) -> Engine:
    """The engine, its optimizer and its learning rate schedule (over optimizer steps)."""
    settings, per_step = config.train, 1
    if is_online(config.method.stage):
        per_step = config.online.ppo_epochs * config.online.ppo_buffer_size
    critic_rate = config.ppo.value_learning_rate
    optimizer = OptimizerSettings(
        learning_rate=settings.learning_rate,
        name=settings.optim,
        options=optimizer_options(settings.optim_args),
        weight_decay=settings.weight_decay,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        role_learning_rates={Role.CRITIC: critic_rate} if critic_rate else {},
        lora_b_ratio=config.method.loraplus_lr_ratio or 1.0,
        clip_per_role=config.ppo.clip_grad_per_role,
        starts={Role.ACTOR: config.ppo.critic_warmup_steps * per_step} if config.method.stage == "ppo" else {},
    )
    options = schedule_options(settings.lr_scheduler_kwargs)
    schedule = partial(
        learning_rate_factor,
        total=plan.total * per_step,
        warmup=plan.warmup * per_step,
        kind=settings.lr_scheduler_type,
        learning_rate=settings.learning_rate,
        options={n: v * per_step if n.endswith("_steps") and v else v for n, v in options.items()},
    )
    online = is_online(config.method.stage)
    return Engine(
        roles,
        make_algorithm(config),
        optimizer,
        schedule,
        temperature=config.generation.temperature if online and config.generation.do_sample else 1.0,
        max_tokens=settings.max_tokens_per_microbatch,
        seed=settings.seed,
        processes=processes,
    )
