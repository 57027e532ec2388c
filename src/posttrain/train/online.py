"""The online loop: sample, score, consult, credit, update; the same for every algorithm that samples its own text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.algorithms import OnlineAlgorithm
from posttrain.data.batches import epoch_order
from posttrain.data.encode import EncodedPrompt
from posttrain.data.stream import RowStream
from posttrain.engine import Engine, return_freed_memory
from posttrain.rewards import Reward, measured
from posttrain.rollout import Sampler, SamplingParams
from posttrain.train.experience import collect, joined, minibatches, sequence_kl, telling
from posttrain.train.gates import check_kl, check_ratio
from posttrain.train.mixture import Mixture
from posttrain.train.monitor import Monitor
from posttrain.train.pace import Pace
from posttrain.train.repetition import repetition
from posttrain.train.scoring import judged, scored
from posttrain.types import Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class OnlineRun:
    """The parts of an online run.

    Attributes:
        prompts: the training prompts. num_prompts: prompts of one iteration.
        sampling: how completions are drawn; ``iteration`` is filled in.
        epochs: passes over the experience. minibatch_size: sequences of one optimizer step.
        seed, shuffle: of the order of prompts and minibatches.
        tolerance: of the step-0 gates.
        dynamic_rounds: how often prompts whose completions all have one reward are replaced by others; 0 is never.
        mixture: the pretraining rows that every update is mixed with; None is none.
        on_first_rewards: called with the first iteration's batch once its rewards are known.
        record: called with the number of every finished iteration and its batch.
    """

    engine: Engine
    algorithm: OnlineAlgorithm
    sampler: Sampler
    reward: Reward
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[EncodedPrompt] | RowStream
    num_prompts: int
    sampling: SamplingParams
    epochs: int
    minibatch_size: int
    seed: int
    shuffle: bool = True
    tolerance: float = 1e-3
    dynamic_rounds: int = 0
    mixture: Mixture | None = None
    record: Callable[[int, RolloutBatch], None] = lambda iteration, batch: None
    on_first_rewards: Callable[[RolloutBatch], None] = lambda batch: None


def fit(run: OnlineRun, iterations: int, monitor: Monitor, phase: Callable[[str, int, int], None]) -> None:
    """Run iterations from the engine's to the last.

    Args:
        run: the parts.
        iterations: how many in all.
        monitor: told of every iteration.
        phase: shows what is going on: name, done, total.

    Raises:
        RunError: if a step-0 gate does not hold, or a loss is not finite.
    """
    for iteration in range(run.engine.iteration, iterations):
        batch = experience(run, iteration, monitor.pace, phase)
        batch, stats = learn(run, iteration, batch, monitor.pace, phase)
        run.record(iteration + 1, batch)
        if monitor.after_step(iteration + 1, stats):
            break


def learn(
    run: OnlineRun, iteration: int, batch: RolloutBatch, pace: Pace, phase: Callable[[str, int, int], None]
) -> tuple[RolloutBatch, dict[str, float]]:
    """One iteration from its completions on: score what has no reward yet, consult, credit, update.

    Returns:
        (the batch with all its columns, statistics).

    Raises:
        RunError: as ``fit``.
    """
    engine, algorithm = run.engine, run.algorithm
    with pace.phase("score"):
        phase("score", 0, 0)
        batch = engine.with_lower_states(batch)
        on_rewards = run.on_first_rewards if iteration == 0 else None
        batch, waited = judged(engine, run.reward, algorithm.consults, batch, on_rewards)
    if iteration == 0:
        check_kl(batch, run.tolerance)
    before = engine.algorithm_state
    batch, engine.algorithm_state = algorithm.credit(engine.gathered(batch), before)
    with pace.phase("train"):
        stats = update(run, iteration, batch, phase)
    batch = batch.with_columns(lower_states=())
    engine.iteration = iteration + 1
    stats["seconds_reward_wait"] = waited
    stats |= algorithm.statistics(batch, before) | part_means(batch) | {"repetition": repetition(batch.completions)}
    return batch, stats | pace.take(_live_tokens(batch, run.epochs))


def _live_tokens(batch: RolloutBatch, epochs: int) -> dict[str, float]:
    """Real tokens that each phase dealt with, padding not counted: sampled ones, scored ones, trained ones."""
    total = float(batch.attention_mask.sum())
    trained = total if batch.trains is None else float(batch.attention_mask[batch.trains].sum())
    return {"generate": float(batch.loss_mask.sum()), "score": total, "train": trained * epochs}


def take(run: OnlineRun, iteration: int, again: int = 0) -> list[EncodedPrompt]:
    """The prompts of one iteration: the next ``num_prompts`` of an endless shuffled stream, a function of the seed.

    Args:
        run: names the prompts. iteration: from 0.
        again: 0, or the round of dynamic sampling, each of which reads a stream of its own.
    """
    if isinstance(run.prompts, RowStream):
        stream = run.prompts if not again else run.prompts.reseeded(run.seed + 7919 * again)
        return stream.take(iteration * run.num_prompts, run.num_prompts)
    taken = []
    count = len(run.prompts)
    order: tuple[int, list[int]] = (-1, [])
    seed = run.seed + 7919 * again
    for position in range(iteration * run.num_prompts, (iteration + 1) * run.num_prompts):
        epoch, place = divmod(position, count)
        if order[0] != epoch:
            order = (epoch, epoch_order(count, seed=seed, epoch=epoch, shuffle=run.shuffle or again > 0))
        taken.append(run.prompts[order[1][place]])
    return taken


def experience(run: OnlineRun, iteration: int, pace: Pace, phase: Callable[[str, int, int], None]) -> RolloutBatch:
    """The completions of one iteration; scored where what is sampled depends on the scores.

    With ``dynamic_rounds``, groups whose rewards are all the same teach nothing and are replaced by groups of further
    prompts, as long as the rounds last; then the iteration goes on with those that it has (with all, if none differ).
    """
    with pace.phase("generate"):
        batch = _drawn(run, iteration, 0, phase)
    if not run.dynamic_rounds:
        return batch
    group, wanted = run.algorithm.group_size, len(batch)
    with pace.phase("score"):
        batch = scored(run.reward, batch)
    found = [telling(batch, group)]
    for again in range(1, run.dynamic_rounds + 1):
        if sum(map(len, found)) >= wanted:
            break
        with pace.phase("generate"):
            more = _drawn(run, iteration, again, phase)
        with pace.phase("score"):
            found.append(telling(scored(run.reward, more), group))
    kept = [rows for rows in found if len(rows)]
    if not kept:
        return batch
    whole = joined(kept)
    return whole.rows(torch.arange(min(wanted, len(whole)), device=whole.input_ids.device))


def part_means(batch: RolloutBatch) -> dict[str, float]:
    """``reward/<part>_mean`` of each part of the reward."""
    return {f"reward/{name}_mean": float(scores.mean()) for name, scores in (batch.reward_parts or {}).items()}


def _drawn(run: OnlineRun, iteration: int, again: int, phase: Callable[[str, int, int], None]) -> RolloutBatch:
    """The completions of one round, with the greedy ones' rewards where the algorithm asks for them."""
    prompts = take(run, iteration, again)
    batch = rollout(run, iteration, prompts, phase, first_index=again * run.num_prompts)
    if not run.algorithm.greedy_baseline:
        return batch
    greedy = replace(run, sampling=replace(run.sampling, do_sample=False))
    baselines = run.reward(rollout(greedy, iteration, prompts, phase, samples=1))  # [P]
    return batch.with_columns(baseline_rewards=baselines.repeat_interleave(run.algorithm.group_size))


def rollout(
    run: OnlineRun,
    iteration: int,
    prompts: Sequence[EncodedPrompt],
    phase: Callable[[str, int, int], None],
    *,
    samples: int | None = None,
    first_index: int = 0,
) -> RolloutBatch:
    """Completions of the current actor.

    Args:
        run: the parts. iteration: seeds the samples. prompts: to complete. phase: shows progress.
        samples: of each prompt; None is the algorithm's group.
        first_index: of the prompts, which seeds their samples too.
    """
    params = replace(run.sampling, iteration=iteration)
    return_freed_memory()
    with run.engine.weights(Role.ACTOR):
        return collect(
            run.sampler,
            run.tokenizer,
            prompts,
            params,
            group_size=samples or run.algorithm.group_size,
            first_index=first_index,
            progress=lambda done, total: phase("generate", done, total),
        ).to(run.engine.device)


def update(
    run: OnlineRun, iteration: int, batch: RolloutBatch, phase: Callable[[str, int, int], None]
) -> dict[str, float]:
    """Several epochs of shuffled minibatches, one optimizer step each; returns the mean of their statistics."""
    group = run.algorithm.trained_group
    trained = batch if batch.trains is None else batch.rows(batch.trains.nonzero().squeeze(1))
    steps = max(1, round(len(batch) / run.minibatch_size))  # as many as if every row trained
    size = group * max(1, math.ceil(len(trained) / group / steps))
    pieces = list(
        minibatches(
            trained,
            epochs=run.epochs,
            size=run.minibatch_size if trained is batch else size,
            group_size=group,
            seed=run.seed,
            iteration=iteration,
        )
    )
    if not pieces:  # no completion was worth learning from
        return {"loss": 0.0, "grad_norm": 0.0}
    sums: dict[str, float] = {}
    for number, piece in enumerate(pieces):
        phase("train", number, len(pieces))
        run.engine.accumulate(run.algorithm, piece)
        if run.mixture is not None:
            run.mixture.accumulate(run.engine)
        if iteration == 0 and number == 0:
            check_ratio(run.engine.pending(), run.tolerance)
        stats = run.engine.optimizer_step()
        for name, value in stats.items():
            sums[name] = sums.get(name, 0.0) + value / len(pieces)
    return sums


def held_out(
    run: OnlineRun,
    prompts: Sequence[EncodedPrompt],
    judge: Reward | None = None,
    record: Callable[[RolloutBatch, Mapping[str, Tensor]], None] = lambda batch, rewards: None,
) -> Callable[[], dict[str, float]]:
    """A function that measures the actor on held-out prompts with greedy completions: reward, KL, length.

    Args:
        run: the parts. prompts: held out. judge: a reward that is not trained on, for ``eval_judge_reward``.
        record: given the completions and, by name, their rewards.
    """
    greedy = replace(run.sampling, do_sample=False)

    def evaluate() -> dict[str, float]:
        began = time.perf_counter()
        with run.engine.weights(Role.ACTOR):
            batch = collect(run.sampler, run.tokenizer, prompts, greedy, group_size=1).to(run.engine.device)
        found = {"eval_reward": measured(run.reward)(batch)}
        if judge is not None:
            found["eval_judge_reward"] = judge(batch)
        record(batch, found)
        # greedy log-probabilities are recorded at temperature 1
        batch = run.engine.consult((Role.REFERENCE,), batch, temperature=1.0)
        seconds = time.perf_counter() - began
        return {
            **{name: float(rewards.mean()) for name, rewards in found.items()},
            **{f"{name}_std": float(rewards.std(correction=0)) for name, rewards in found.items()},
            "eval_kl": float(sequence_kl(batch).mean()),
            "eval_response_length": float(batch.loss_mask.sum(dim=1).float().mean()),
            "eval_ended_share": float(batch.ended.float().mean()),
            "eval_runtime": seconds,
            "eval_samples_per_second": len(prompts) / seconds,
            "eval_steps_per_second": 1 / seconds,
        }

    return evaluate
