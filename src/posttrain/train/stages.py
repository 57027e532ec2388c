"""The two kinds of stage behind one face: how each makes its batches, measures itself and runs its loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.algorithms import PPO, OnlineAlgorithm, PretrainingLoss
from posttrain.algorithms.running import reward_std, with_rewards
from posttrain.config import RewardConfig, RunConfig, is_online
from posttrain.data.batches import collate, collate_pairs, collate_preferences, collate_unpaired, lengths_of
from posttrain.data.datasets import load_dataset
from posttrain.data.encode import EncodedPrompt
from posttrain.data.stream import RowStream
from posttrain.data.template import pad_token_id
from posttrain.errors import UserError
from posttrain.models.forward import is_packed
from posttrain.rewards import EnsembleReward, Reward, RoleReward, WeightedReward, build_reward
from posttrain.rollout import Sampler, SamplingParams
from posttrain.train import offline, online
from posttrain.train.alarms import Alarms
from posttrain.train.dealt import DealtReward, DealtSampler
from posttrain.train.distribution import COMPLETIONS
from posttrain.train.experience import sequence_kl
from posttrain.train.fewer_slots import FewerSlots
from posttrain.train.mixture import Mixture
from posttrain.train.monitor import Monitor
from posttrain.train.parts import Parts, make_algorithm, optimizer_rows
from posttrain.train.progress import Progress
from posttrain.train.recorded import recorded_value_head
from posttrain.types import AlgorithmState, Role, RolloutBatch

# float32 differs between sampling and training by summation order only; half precision by its rounding.
GATE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


_ASKED = ("reward_time_limit", "reward_batch_size", "reward_retries", "reward_on_error", "reward_token_env")
COLLATE: Mapping[str, Callable[..., Any]] = {"rm": collate_preferences, "dpo": collate_pairs, "kto": collate_unpaired}
"""Stage -> how its rows become a batch, where not by ``collate``."""


class Stage(Protocol):
    """What ``run`` needs of a stage.

    Attributes:
        default_metric: what "best" means unless configured. measures_before: whether step 0 is evaluated.
        evaluate: measures the held-out rows; None when there are none. alarms: watch the run; None when nothing does.
    """

    default_metric: str
    measures_before: bool
    evaluate: Callable[[], Mapping[str, float]] | None
    alarms: Alarms | None

    def fit(self, monitor: Monitor) -> None:
        """Run the loop to its end."""
        ...


def make_stage(parts: Parts, progress: Progress) -> Stage:
    """The stage that the configuration names."""
    return OnlineStage(parts, progress) if is_online(parts.config.method.stage) else OfflineStage(parts)


class OfflineStage:
    """pt, sft, rm, dpo and kto: a fixed dataset."""

    default_metric = "eval_loss"
    alarms: Alarms | None = None

    def __init__(self, parts: Parts) -> None:
        """Prepare batches and evaluation."""
        config = parts.config
        pad = pad_token_id(parts.tokenizer)
        make_batch = partial(COLLATE.get(config.method.stage, collate), pad_id=pad)
        splits = parts.splits
        size = parts.engine.processes.size
        lengths = [] if isinstance(splits.train, RowStream) else lengths_of(splits.train)
        self._rows = offline.Rows(splits.train, splits.validation, lengths, make_batch, size)
        self._parts = parts
        self._algorithm = make_algorithm(config)
        self.measures_before = config.method.stage == "pt" or config.train.eval_on_start
        self.evaluate: Callable[[], Mapping[str, float]] | None = None
        if splits.validation:
            self.evaluate = offline.evaluation(config, parts.engine, self._algorithm, self._rows)

    def fit(self, monitor: Monitor) -> None:
        """See ``Stage.fit``."""
        offline.fit(self._parts.config, self._parts.engine, self._algorithm, self._rows, self._parts.plan, monitor)


class OnlineStage:
    """Prompts, completions of the actor, rewards.

    Attributes:
        run: the parts of the loop.
    """

    default_metric = "eval_reward"
    measures_before = True

    def __init__(self, parts: Parts, progress: Progress) -> None:
        """Put sampler, reward and gates together."""
        config, actor = parts.config, parts.assembly.roles.backbone_of(Role.ACTOR)
        if not is_packed(actor):
            raise UserError(
                f"{type(actor).__name__} cannot run with packed attention, which sampling needs; stages pt, "
                "sft, rm, dpo and kto do train it."
            )
        algorithm = cast(OnlineAlgorithm, make_algorithm(config))
        rows = optimizer_rows(config, parts.engine.processes.size)
        seed = config.train.seed if config.train.data_seed is None else config.train.data_seed
        self._parts, self._progress, self._algorithm = parts, progress, algorithm
        self.run = online.OnlineRun(
            engine=parts.engine,
            algorithm=algorithm,
            sampler=make_sampler(parts, actor),
            reward=make_reward(parts, progress.note),
            tokenizer=parts.tokenizer,
            prompts=parts.splits.train,
            num_prompts=rows * config.online.ppo_buffer_size // algorithm.group_size,
            sampling=sampling_params(parts),
            epochs=config.online.ppo_epochs,
            minibatch_size=rows,
            seed=seed,
            shuffle=not config.train.disable_shuffling,
            tolerance=config.online.gate_tolerance or GATE_TOLERANCE[actor.dtype],
            dynamic_rounds=config.online.dynamic_sampling_rounds if config.online.dynamic_sampling else 0,
            mixture=make_mixture(parts),
            on_first_rewards=self._calibrate_critic,
            record=self._record,
        )
        self.alarms: Alarms | None = Alarms(config.alarms)
        self.evaluate: Callable[[], Mapping[str, float]] | None = None
        judge = make_judge(parts, progress.note)
        if parts.splits.validation:
            self.evaluate = online.held_out(self.run, parts.splits.validation, judge, self._record_evaluation)

    def fit(self, monitor: Monitor) -> None:
        """See ``Stage.fit``."""
        online.fit(self.run, self._parts.plan.total, monitor, self._progress.phase)

    def _calibrate_critic(self, batch: RolloutBatch) -> None:
        """A critic that starts from the reward head is put on the scale of what it is to predict.

        That is the reward, normalised where PPO does so; of a reward with several parts the head knows its own alone.
        """
        assembly, reward = self._parts.assembly, self.run.reward
        normalizes = isinstance(self._algorithm, PPO) and self._algorithm.normalize_rewards
        own = (batch.reward_parts or {}).get("reward_model")
        if not assembly.critic_from_reward or batch.rewards is None or not (normalizes or own is not None):
            return
        seen = with_rewards(AlgorithmState(), batch.rewards)
        shift, scale = (seen.reward_mean, reward_std(seen) + 1e-8) if normalizes else (0.0, 1.0)
        slope, center = 1.0, seen.reward_mean
        if own is not None and isinstance(reward, WeightedReward):
            slope, center = reward.slope("reward_model"), float(own.mean())
        head = assembly.roles.head("value")
        with torch.no_grad():  # of a score s: (slope (s - center) + mean - shift) / scale
            head.weight.mul_(slope / scale)
            head.bias.sub_(center).mul_(slope / scale).add_((seen.reward_mean - shift) / scale)

    def _record(self, iteration: int, batch: RolloutBatch) -> None:
        """Every completion of the iteration into ``completions.jsonl``."""
        columns = zip(
            batch.prompts,
            batch.completions,
            batch.rewards.tolist() if batch.rewards is not None else [],
            sequence_kl(batch).tolist(),
            batch.loss_mask.sum(dim=1).tolist(),
            batch.ended.tolist(),
            strict=True,
        )
        names = ("prompt", "completion", "reward", "kl", "response_length", "ended")
        rows = [{"step": iteration, **dict(zip(names, row, strict=True))} for row in columns]
        for name, scores in (batch.reward_parts or {}).items():
            for row, score in zip(rows, scores.tolist(), strict=True):
                row[f"reward/{name}"] = score
        self._parts.directory.append_jsonl("completions.jsonl", *rows)

    def _record_evaluation(self, batch: RolloutBatch, rewards: Mapping[str, Tensor]) -> None:
        """Every held-out completion of an evaluation into ``eval_completions.jsonl``."""
        scores = {name: found.tolist() for name, found in rewards.items()}
        lengths = batch.loss_mask.sum(dim=1).tolist()
        rows = [
            {
                "step": self._parts.steps_done,
                "number": number,
                "prompt": batch.prompts[number],
                "completion": batch.completions[number],
                **{name: found[number] for name, found in scores.items()},
                "response_length": lengths[number],
            }
            for number in range(len(lengths))
        ]
        self._parts.directory.append_jsonl(COMPLETIONS, *rows)


def make_sampler(parts: Parts, actor: PreTrainedModel) -> Sampler:
    """The slots of this process; several processes share out the prompts."""
    processes = parts.engine.processes
    head = recorded_value_head(parts.assembly.roles)
    slots = parts.config.online.num_rollout_slots
    sampler = FewerSlots(
        actor, announce=lambda sentence: parts.engine.shares.announce(sentence), num_slots=slots, value_head=head
    )
    return sampler if processes.size == 1 else DealtSampler(sampler, processes)


def make_reward(parts: Parts, notify: Callable[[str], None] = lambda sentence: None) -> Reward:
    """Where completions get their reward; several processes share out all of it that is no role of the engine."""
    train = parts.splits.train
    prompts = (*(train.head() if isinstance(train, RowStream) else train), *parts.splits.validation)
    return _reward(parts, parts.config, role_reward(parts), prompts, notify)


def role_reward(parts: Parts) -> Reward:
    """What the reward role says, together with the other reward models where it is one of an ensemble."""
    engine, count = parts.engine, parts.assembly.roles.num_reward_models
    if count < 2:
        return RoleReward(engine.scores)
    members = [partial(engine.scores, member=number) for number in range(count)]
    return EnsembleReward(members, disagreement_coef=parts.config.reward.reward_disagreement_coef)


def make_judge(parts: Parts, notify: Callable[[str], None] = lambda sentence: None) -> Reward | None:
    """The reward that held-out completions get and nothing is trained on; None where ``alarm_reward_funcs`` are empty.

    How it is asked, such as ``reward_time_limit``, is as for the reward that is trained on.

    Raises:
        UserError: it cannot be had, or a held-out row lacks what it reads.
    """
    config = parts.config
    keys = RewardConfig(reward_funcs=config.alarms.alarm_reward_funcs)
    if not keys.reward_funcs:
        return None
    asked = {name: getattr(config.reward, name) for name in _ASKED}
    judged = replace(config, reward=replace(keys, **asked))
    try:
        return _reward(parts, judged, None, parts.splits.validation, notify)
    except UserError as error:
        raise UserError(f"alarm_reward_funcs, on the held-out rows: {error}") from error


def _reward(
    parts: Parts,
    config: RunConfig,
    role: Reward | None,
    prompts: Sequence[EncodedPrompt],
    notify: Callable[[str], None],
) -> Reward:
    processes, tokenizer = parts.engine.processes, parts.tokenizer
    return build_reward(
        config,
        role=role,
        rows=[prompt.extras for prompt in prompts],
        share=(lambda reward: reward) if processes.size == 1 else partial(DealtReward, processes=processes),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
        device=parts.engine.device,
        notify=notify,
    )


def make_mixture(parts: Parts) -> Mixture | None:
    """The pretraining rows of ``ptx_dataset``, cut like those of stage pt."""
    config, online = parts.config, parts.config.online
    if not online.ptx_dataset:
        return None
    alone: dict[str, Any] = {"eval_dataset": (), "val_size": 0.0, "mix_strategy": "concat", "interleave_probs": ()}
    alone |= {"tokenized_path": None, "streaming": False}
    data = replace(config.data, dataset=online.ptx_dataset, packing=True, **alone)
    splits = load_dataset(data, parts.tokenizer, "pt", seed=config.train.seed)
    return Mixture(
        rows=splits.train,
        size=online.ptx_batch_size,
        seed=config.train.seed,
        pad_id=pad_token_id(parts.tokenizer),
        algorithm=PretrainingLoss(coef=online.ptx_coef),
    )


def sampling_params(parts: Parts) -> SamplingParams:
    """How rollouts are drawn."""
    generation, template = parts.config.generation, parts.splits.template
    if template is None:
        raise UserError("an online stage needs prompts rendered by a chat template")
    return SamplingParams.configured(generation, stop_token_ids=template.stop_token_ids, seed=parts.config.train.seed)
