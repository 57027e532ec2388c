"""What an iteration is made of where what is sampled depends on the scores, or a greedy completion is the baseline."""

from __future__ import annotations

import pytest
import torch

from posttrain.rewards import ScriptedReward
from posttrain.rollout.scripted import ScriptedSampler
from posttrain.train import online
from posttrain.train.pace import Pace


def quiet(name, done, total):
    """No progress bar."""


FIRST = 70
"""Token of the first sample of a prompt; the second says the next one."""


def by_sample(prompt, sample):
    return [FIRST + sample, 100 + prompt.index, 2]


@pytest.fixture
def drawn(make_online_run):
    """(batch, sampler, asked) of one iteration of two groups of two; ``tells`` says which prompts' samples differ."""

    def make(tells, *, rounds=3, iteration=0, stage="grpo", **keys):
        sampler, asked = ScriptedSampler(by_sample), []

        def score(ids):
            asked.append(ids[1] - 100)
            return float(ids[0] - FIRST) if tells(ids[1] - 100) else 5.0

        parts = {"sampler": sampler, "reward": ScriptedReward(score), "tolerance": 1e9, "dynamic_rounds": rounds}
        run, _ = make_online_run(parts, stage=stage, num_return_sequences=2, **keys)
        return online.experience(run, iteration, Pace(), quiet), sampler, asked

    return make


def indices(batch):
    """Which prompt each row is of, by the index that the sampler was given."""
    return [int(ids[mask][1]) - 100 for ids, mask in zip(batch.input_ids, batch.loss_mask, strict=True)]


def test_without_rounds_nothing_is_scored_yet(drawn) -> None:
    batch, sampler, asked = drawn(lambda index: False, rounds=0)
    assert indices(batch) == [0, 0, 1, 1]
    assert batch.rewards is None
    assert (len(sampler.calls), asked) == (1, [])


def test_an_experience_that_tells_is_taken_as_it_is(drawn) -> None:
    batch, sampler, asked = drawn(lambda index: True)
    assert indices(batch) == [0, 0, 1, 1]
    assert batch.rewards.tolist() == [0, 1, 0, 1]
    assert (len(sampler.calls), asked) == (1, [0, 0, 1, 1])


def test_groups_that_do_not_tell_are_replaced(drawn) -> None:
    """Prompt 0 is replaced by the first one that tells among further prompts, which have indices of their own."""
    batch, sampler, _ = drawn(lambda index: index in (1, 3, 4))
    assert indices(batch) == [1, 1, 3, 3]
    assert batch.rewards.tolist() == [0, 1, 0, 1]
    assert [[prompt.index for prompt in prompts] for prompts, _ in sampler.calls] == [[0, 1], [2, 3]]
    assert [params.iteration for _, params in sampler.calls] == [0, 0]


def test_further_rounds_are_drawn_as_long_as_they_last(drawn) -> None:
    batch, sampler, _ = drawn(lambda index: index in (3, 6, 7))
    assert indices(batch) == [3, 3, 6, 6]  # no more than were wanted
    assert len(sampler.calls) == 4
    batch, sampler, _ = drawn(lambda index: index in (3, 8))
    assert indices(batch) == [3, 3]  # fewer, where the rounds are over
    assert len(sampler.calls) == 4
    batch, sampler, _ = drawn(lambda index: index in (3, 8), rounds=1)
    assert indices(batch) == [3, 3]
    assert len(sampler.calls) == 2


def test_where_no_group_tells_the_first_ones_are_taken(drawn) -> None:
    batch, sampler, _ = drawn(lambda index: False, rounds=2)
    assert indices(batch) == [0, 0, 1, 1]
    assert batch.rewards.tolist() == [5.0] * 4
    assert len(sampler.calls) == 3


def test_further_prompts_are_others_and_follow_from_the_seed(make_online_run) -> None:
    """Rounds read streams of their own, which do not end; the order without shuffling stays that of the file."""
    run, _ = make_online_run({"num_prompts": 4, "shuffle": False})
    texts = [prompt.text for prompt in run.prompts]
    assert [p.text for p in online.take(run, 0)] == texts[:4]
    rounds = [[p.text for p in online.take(run, 0, again)] for again in (1, 2)]
    assert rounds == [[p.text for p in online.take(run, 0, again)] for again in (1, 2)]
    assert rounds[0] != rounds[1] != texts[:4] != rounds[0]
    stream = [p.text for i in range(3) for p in online.take(run, i, 1)]
    assert sorted(stream) == sorted(texts)


@pytest.mark.parametrize("rounds", [0, 2])
def test_the_loop_scores_once_and_trains_on_what_it_got(make_online_run, notebook, rounds) -> None:
    seen, recorded = [], []

    def score(ids):
        seen.append(tuple(ids))
        return float(ids[0] - FIRST) if ids[1] != 100 else 5.0

    sampler = ScriptedSampler(by_sample)
    parts = {"sampler": sampler, "reward": ScriptedReward(score), "tolerance": 1e9, "dynamic_rounds": rounds}
    run, _ = make_online_run(
        {**parts, "record": lambda step, batch: recorded.append(batch)}, stage="grpo", num_return_sequences=2
    )
    notes = notebook()
    online.fit(run, 1, notes, quiet)
    assert indices(recorded[0]) == ([1, 1, 2, 2] if rounds else [0, 0, 1, 1])
    assert len(seen) == 4 * len(sampler.calls)
    assert recorded[0].advantages.abs().sum() > 0
    assert run.engine.step == 2


def test_fewer_rows_than_wanted_are_fewer_steps(make_online_run, notebook) -> None:
    """Three of four minibatches' worth of groups do not tell."""
    reward = ScriptedReward(lambda ids: float(ids[0] - FIRST) if ids[1] < 102 else 5.0)
    parts = {"sampler": ScriptedSampler(by_sample), "reward": reward, "tolerance": 1e9, "dynamic_rounds": 1}
    run, _ = make_online_run(parts, stage="grpo", num_return_sequences=2, ppo_buffer_size=4, ppo_epochs=1)
    assert run.num_prompts == 8
    online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 1


@pytest.fixture
def remax(make_online_run):
    """(run, sampler, scored) of stage remax: two prompts of two samples; the greedy completion says 99."""

    def make(**parts):
        scored = []

        class Sampler(ScriptedSampler):
            def generate(self, prompts, params, progress=None):
                self.script = by_sample if params.do_sample else lambda prompt, sample: [99, 100 + prompt.index, 2]
                return super().generate(prompts, params, progress)

        def score(ids):
            scored.append((ids[0], ids[1] - 100))
            return float(ids[0] - FIRST) + 10 * (ids[1] - 100)

        sampler = Sampler(by_sample)
        parts = {"sampler": sampler, "reward": ScriptedReward(score), "tolerance": 1e9, **parts}
        run, _ = make_online_run(parts, stage="remax", num_return_sequences=2, kl_coef=0.0)
        return run, sampler, scored

    return make


def test_the_baseline_is_the_reward_of_each_prompts_greedy_completion(remax) -> None:
    run, sampler, scored = remax()
    batch = online.experience(run, 3, Pace(), quiet)
    assert indices(batch) == [0, 0, 1, 1]
    assert batch.baseline_rewards.tolist() == [29, 29, 39, 39]
    assert batch.rewards is None
    assert scored == [(99, 0), (99, 1)]
    (sampled, _), (greedy, how) = sampler.calls
    assert [prompt.samples for prompt in sampled] == [2, 2]
    assert [prompt.samples for prompt in greedy] == [1, 1]
    assert [p.input_ids for p in greedy] == [p.input_ids for p in sampled]
    assert (how.do_sample, how.iteration) == (False, 3)


def test_the_greedy_completion_never_trains(remax, notebook) -> None:
    recorded = []
    run, _, _ = remax(record=lambda step, batch: recorded.append(batch))
    notes = notebook()
    online.fit(run, 1, notes, quiet)
    (batch,) = recorded
    assert len(batch) == 4
    assert 99 not in batch.input_ids
    # rewards 0, 1, 10, 11 less 29, 29, 39, 39
    assert batch.advantages[batch.loss_mask].reshape(4, 3)[:, 0].tolist() == [-29, -28, -29, -28]
    assert notes.stats[0]["reward_mean"] == 5.5
    assert run.engine.step == 2


def test_further_prompts_have_greedy_completions_too(remax) -> None:
    """Samples of prompts 0 and 2 score the same."""
    reward = ScriptedReward(lambda ids: float(ids[0]) if ids[0] == 99 or ids[1] % 2 else 5.0)
    run, _, _ = remax(dynamic_rounds=1, reward=reward)
    batch = online.experience(run, 0, Pace(), quiet)
    assert indices(batch) == [1, 1, 3, 3]
    assert batch.rewards.tolist() == [70, 71, 70, 71]
    assert batch.baseline_rewards.tolist() == [99] * 4


def test_other_algorithms_sample_no_baseline(make_online_run) -> None:
    sampler = ScriptedSampler(by_sample)
    run, _ = make_online_run({"sampler": sampler}, stage="rloo", num_return_sequences=2)
    batch = online.experience(run, 0, Pace(), quiet)
    assert batch.baseline_rewards is None
    assert len(sampler.calls) == 1
    assert torch.equal(batch.loss_mask.sum(dim=1), torch.full((4,), 3))
