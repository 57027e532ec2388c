"""PPO in a loop of one's own: sample, score by any means, learn, save."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.algorithms import PPO
from posttrain.config import GenerationConfig, RunConfig
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.assemble import Assembly, online_assembly
from posttrain.models.fetch import resolve_model
from posttrain.models.forward import is_packed
from posttrain.models.given import NOTHING_GIVEN
from posttrain.models.load import load_tokenizer
from posttrain.rewards import Reward
from posttrain.rollout import Prompt, SamplingParams, SlotSampler
from posttrain.train import online
from posttrain.train.alarms import Alarms
from posttrain.train.experience import laid_out
from posttrain.train.given_rows import GivenRows
from posttrain.train.handed_in import (
    Chat,
    GivenReward,
    SampledResponse,
    check_positions,
    completion_rows,
    encoded_prompts,
    falls,
    generation_settings,
    loop_config,
    loop_keys,
    reward_column,
    rows_of,
)
from posttrain.train.handed_over import HandedOver, handed_over
from posttrain.train.pace import Pace
from posttrain.train.parts import make_algorithm, make_engine, make_plan, optimizer_rows
from posttrain.train.places import model_place
from posttrain.train.prompt_batches import PromptBatches
from posttrain.train.run_directory import RunDirectory
from posttrain.train.stages import GATE_TOLERANCE
from posttrain.types import Role, RolloutBatch

_SHOWN = ("reward_mean", "kl", "loss", "clip_fraction", "response_length")


def _say(sentence: str) -> None:
    print(f"posttrain: {sentence}", file=sys.stderr, flush=True)


class PPOTrainer:
    """Stage ppo with the loop left to its user, who brings prompts and rewards.

    One call of ``step`` is one iteration of the stage, computed by the same code. Everything is a function of the seed
    and of what is handed in: a sample does not depend on what else is drawn beside it.

    Attributes:
        config: fully resolved. tokenizer: with the chat template in use.
    """

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        model: str | Path | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        train_dataset: Any = None,
        notify: Callable[[str], None] = _say,
        **keys: Any,
    ) -> None:
        """Load the model and dress its roles.

        Args:
            config: keys of stage ppo, as in a YAML file, or the path of one; no dataset and no reward model is read.
            model: a name, a folder, or a language model of transformers; without ``peft_config`` its own weights train.
            tokenizer: of transformers; the one that lies with the model unless given.
            peft_config: a ``peft.LoraConfig``.
            train_dataset: rows of prompts for ``dataloader``: a list, a mapping of columns, a ``datasets.Dataset``.
            notify: receives sentences for the user; standard error unless given.
            keys: flat keys, which win over ``config``.

        Raises:
            UserError: bad configuration or folders, or an object that cannot be used.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise UserError("an own loop is one process (WORLD_SIZE is set): start it without torchrun")
        over: HandedOver | None = None
        source: RunConfig | Mapping[str, Any] | str | Path = config if config is not None else {}
        if not (model is None and tokenizer is None and peft_config is None):
            over = handed_over(model, tokenizer, peft_config, {**loop_keys(config), **keys})
            source = over.keys
        elif keys:
            source = {**loop_keys(config), **keys}
        self.config, notes = loop_config(source)
        self.tokenizer, assembly = self._loaded(over, (*notes, *(over.notes if over else ())), notify)
        actor = assembly.roles.backbone_of(Role.ACTOR)
        if not is_packed(actor):
            raise UserError(f"{type(actor).__name__} cannot run with packed attention, which sampling needs")
        allowed = self.config.model.allow_mismatch
        self._assembly = assembly.under_template(self._template, allow_mismatch=allowed, base=self._base)
        for sentence in (*self._template.notes, *self._assembly.notes):
            notify(sentence)
        settings = self.config.train
        self._rows_per_step = optimizer_rows(self.config) * self.config.online.ppo_buffer_size
        total = max(settings.max_steps, 1)
        planned = dataclasses.replace(self.config, train=dataclasses.replace(settings, max_steps=total))
        self._engine = make_engine(planned, assembly.roles, make_plan(planned, self._rows_per_step))
        self._sampler = SlotSampler(actor, num_slots=self.config.online.num_rollout_slots)
        self._tolerance = self.config.online.gate_tolerance or GATE_TOLERANCE[actor.dtype]
        self._alarms, self._notify = Alarms(self.config.alarms), notify
        self._asked, self._pace = 0, Pace()
        self._prompts = None if train_dataset is None else self._batches(GivenRows(train_dataset, "train_dataset"))

    def _loaded(
        self, over: HandedOver | None, notes: Sequence[str], notify: Callable[[str], None]
    ) -> tuple[PreTrainedTokenizerBase, Assembly]:
        """Tokenizer with its template, and the roles, from what was handed over or from folders."""
        model = self.config.model
        for sentence in notes:
            notify(sentence)
        if over is not None and (said := over.settle()):
            notify(said)
        folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
        self._base = Path(folder)
        given = NOTHING_GIVEN if over is None else over.given
        tokenizer = given.tokenizer or load_tokenizer(
            folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code
        )
        self._template = Template.configured(tokenizer, self.config.data)
        tokenizer.chat_template = self._template.chat_template
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said in other words
            return tokenizer, online_assembly(self.config, given)

    @property
    def dataloader(self) -> PromptBatches:
        """``train_dataset`` in batches of one step, for ``for batch in trainer.dataloader``.

        Raises:
            UserError: there is none.
        """
        if self._prompts is None:
            raise UserError("there is no train_dataset to go through: PPOTrainer(..., train_dataset=rows)")
        return self._prompts

    @property
    def steps_done(self) -> int:
        """How many times ``step`` has learned, resumed ones included."""
        return self._engine.iteration

    def generate(self, prompts: Sequence[Chat], **overrides: Any) -> list[SampledResponse]:
        """Completions by the current policy.

        Args:
            prompts: texts (each a message of the user) or lists of messages.
            overrides: generation keys for this call, such as ``max_new_tokens=32`` or ``do_sample=False``.

        Returns:
            ``num_return_sequences`` for each prompt, side by side.

        Raises:
            UserError: prompts or keys that cannot be used.
        """
        settings = generation_settings(self.config, overrides)
        encoded = encoded_prompts(prompts, self._template, self.config.data.cutoff_len)
        first = self._asked  # what one iteration asks in several calls must not be drawn with the same numbers
        asked = [
            Prompt(input_ids=tuple(prompt.input_ids), index=first + number, samples=settings.num_return_sequences)
            for number, prompt in enumerate(encoded)
        ]
        with self._pace.phase("generate"), self._engine.weights(Role.ACTOR):
            completions = self._sampler.generate(asked, self._params(settings))
        self._asked += len(asked)
        return [
            SampledResponse(
                prompt=prompts[completion.prompt_index - first],
                text=str(self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)),
                token_ids=tuple(completion.token_ids),
                logprobs=tuple(completion.logprobs),
                ended=completion.ended,
                temperature=_temperature(settings),
            )
            for completion in completions
        ]

    def step(
        self,
        prompts: Sequence[Chat],
        responses: Sequence[str | SampledResponse],
        rewards: Sequence[float] | Tensor,
    ) -> dict[str, float]:
        """Learn from responses and their rewards: ``ppo_epochs`` passes in minibatches, an optimizer step for each.

        A minibatch is per_device_train_batch_size x gradient_accumulation_steps responses; any number may be given.

        Args:
            prompts: one for each response, or, where several were sampled side by side, one for each group of them.
            responses: what ``generate`` returned, or texts, whose log-probabilities are then measured.
            rewards: one finite number for each response, higher is better.

        Returns:
            The figures of the log of stage ppo (``reward_mean``, ``kl``, ``loss``, ``clip_fraction`` ...).

        Raises:
            UserError: what was handed in does not fit together.
            RunError: policy and reference disagree before the first update, or a loss is no number.
        """
        rows = rows_of(
            prompts,
            responses,
            self._template,
            cutoff_len=self.config.data.cutoff_len,
            max_new_tokens=self.config.generation.max_new_tokens,
        )
        reward = GivenReward(reward_column(rewards, len(rows)))
        check_positions(rows, self._assembly.roles.backbone_of(Role.ACTOR).config.get_text_config())
        self._check_schedule(len(rows))
        batch = laid_out(self.tokenizer, rows).to(self._engine.device)
        batch = self._with_logprobs(batch, responses)
        iteration = self._engine.iteration
        run = self._run(len(rows), reward)
        _, stats = online.learn(run, iteration, batch, self._pace, lambda name, done, total: None)
        self._asked = 0
        for alarm in self._alarms.after_step(self.steps_done, stats):
            self._notify(f"alarm {alarm.name} at step {alarm.step}: {alarm.sentence}")
        return stats

    def log_stats(
        self,
        stats: Mapping[str, float],
        batch: Mapping[str, Sequence[Any]] | None = None,
        rewards: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Say what a step came to, and write it into ``trainer_log.jsonl`` where there is an ``output_dir``.

        Args:
            stats: what ``step`` returned.
            batch: columns such as ``query`` and ``response``; with ``rewards`` they go to ``completions.jsonl``.
            rewards: one for each row of the batch.

        Raises:
            UserError: numbers of rows and rewards that do not fit.
        """
        shown = " ".join(f"{name} {stats[name]:.4g}" for name in _SHOWN if name in stats)
        self._notify(f"step {self.steps_done}: {shown}")
        rows = [] if batch is None or rewards is None else completion_rows(self.steps_done, batch, rewards)
        if not self.config.train.output_dir:
            return
        place = self._place(None)
        place.append_jsonl("trainer_log.jsonl", {"current_steps": self.steps_done, **stats})
        place.append_jsonl("completions.jsonl", *rows)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the policy as a run directory holds it: adapter or model, tokenizer, lineage.

        Args:
            folder: None is ``output_dir``. A model saved there by an earlier call is replaced.

        Raises:
            UserError: no folder is named, or it is one that the policy stands on.
            RunError: it cannot be written.
        """
        place = self._place(folder)
        place.save_model(lambda path: self._assembly.save(path, self.tokenizer), reads=self._reads())
        return place.path

    save_model = save

    def save_checkpoint(self, folder: str | Path | None = None) -> Path:
        """Write ``checkpoint-N`` into ``folder`` (``output_dir``), from which ``resume`` goes on exactly.

        Call it between ``step`` and the next ``generate``. Raises: as ``save``.
        """

        def write(path: Path) -> None:
            self._assembly.save(path, self.tokenizer)
            self._engine.save(path)
            self._alarms.save(path)

        return self._place(folder).save_checkpoint(
            self.steps_done, write, total_limit=self.config.train.save_total_limit
        )

    def resume(self, folder: str | Path | None = None) -> int:
        """Continue from the latest checkpoint in ``folder`` (``output_dir``), or from ``folder`` if it is one.

        Returns:
            The number of steps it had done; 0 where there is no checkpoint yet.

        Raises:
            UserError: the checkpoint cannot be read, or is of another configuration.
        """
        place = self._named(folder)
        run = RunDirectory(place)
        is_one = (place / "trainer_state.json").is_file()
        checkpoint = run.resume_checkpoint(str(place)) if is_one else run.latest_checkpoint()
        if checkpoint is not None:
            self._engine.resume(checkpoint)
            if not is_one:
                run.truncate_log(self.steps_done)
            self._alarms = Alarms(self.config.alarms)
            self._alarms.resume(checkpoint)
            self._asked = 0
        return self.steps_done

    # -- what step is made of --------------------------------------------------------------------------------------

    def _with_logprobs(self, batch: RolloutBatch, responses: Sequence[str | SampledResponse]) -> RolloutBatch:
        """The sampler's log-probabilities where they are of the policy that trains, else the actor's own."""
        temperature = _temperature(self.config.generation)
        known = [isinstance(r, SampledResponse) and r.temperature == temperature for r in responses]
        if all(known):
            return batch
        measured = self._engine.consult((Role.ACTOR,), batch).logprobs
        recorded = torch.tensor(known, device=measured.device)[:, None]
        return batch.with_columns(logprobs=torch.where(recorded, batch.logprobs, measured))

    def _run(self, count: int, reward: Reward) -> online.OnlineRun:
        """The parts that the online loop learns with; completions of one prompt stay together where they are whole."""
        algorithm = make_algorithm(self.config)
        assert isinstance(algorithm, PPO)
        if count % algorithm.group_size:
            algorithm = dataclasses.replace(algorithm, group_size=1)
        settings = self.config.train
        return online.OnlineRun(
            engine=self._engine,
            algorithm=algorithm,
            sampler=self._sampler,
            reward=reward,
            tokenizer=self.tokenizer,
            prompts=(),
            num_prompts=0,
            sampling=self._params(self.config.generation),
            epochs=self.config.online.ppo_epochs,
            minibatch_size=optimizer_rows(self.config),
            seed=settings.seed if settings.data_seed is None else settings.data_seed,
            tolerance=self._tolerance,
        )

    def _params(self, settings: GenerationConfig) -> SamplingParams:
        return SamplingParams.configured(
            settings,
            stop_token_ids=self._template.stop_token_ids,
            seed=self.config.train.seed,
            iteration=self._engine.iteration,
        )

    def _check_schedule(self, count: int) -> None:
        """A learning rate that falls is reckoned over ``max_steps`` steps of equal size."""
        settings = self.config.train
        if not falls(self.config):
            return
        if count != self._rows_per_step:
            raise UserError(
                f"step was given {count} responses; with lr_scheduler_type: {settings.lr_scheduler_type} it takes "
                f"per_device_train_batch_size x gradient_accumulation_steps x ppo_buffer_size = {self._rows_per_step} "
                "of them (any number with lr_scheduler_type: constant)"
            )
        if self.steps_done >= settings.max_steps:
            raise UserError(
                f"max_steps: {settings.max_steps} steps were announced and all are done, the learning rate is at its "
                "end; raise max_steps"
            )

    # -- folders ---------------------------------------------------------------------------------------------------

    def _reads(self) -> list[str]:
        return [self.config.model.model_name_or_path, *self.config.model.adapter_name_or_path]

    def _named(self, folder: str | Path | None) -> Path:
        named = folder or self.config.train.output_dir
        if not named:
            raise UserError("no folder: give one, or set output_dir")
        return Path(named).expanduser()

    def _place(self, folder: str | Path | None) -> RunDirectory:
        return model_place(self._named(folder), reads=self._reads())

    def _batches(self, rows: GivenRows) -> PromptBatches:
        settings = self.config.train
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        size = max(self._rows_per_step // self.config.generation.num_return_sequences, 1)
        return PromptBatches(rows, size, seed=seed, steps_done=lambda: self.steps_done)


def _temperature(settings: GenerationConfig) -> float:
    """Of the policy whose log-probabilities are recorded; greedy ones are those of the plain model."""
    return settings.temperature if settings.do_sample else 1.0
