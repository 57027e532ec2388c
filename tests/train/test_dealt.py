"""Work that processes share out, with threads in place of the processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from posttrain.errors import RewardError
from posttrain.rewards import FunctionReward, begin
from posttrain.rollout import Completion, Prompt, SamplingParams
from posttrain.train.dealt import DealtReward, DealtSampler
from posttrain.types import RolloutBatch

WAIT_S = 60


class Ring:
    """One of two processes that meet in memory."""

    def __init__(self, rank, barrier, board):
        self.rank, self.size, self._barrier, self._board = rank, 2, barrier, board

    def gather(self, value):
        self._board[self.rank] = value
        self._barrier.wait(WAIT_S)
        found = [self._board[0], self._board[1]]
        self._barrier.wait(WAIT_S)
        return found

    def sum(self, tensor):
        first, second = self.gather(tensor)
        return first + second


def on_both(work):
    """What ``work(processes)`` gives on each of two processes."""
    barrier, board = threading.Barrier(2), {}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Ring(rank, barrier, board) for rank in range(2)]))


class Sampler:
    """Says its prompt's number, with or without values."""

    def __init__(self, has_values):
        self._has_values = has_values

    def generate(self, prompts, params, progress=None):
        return [
            Completion(
                token_ids=[p.index] * (p.index + 1),
                logprobs=[-0.5] * (p.index + 1),
                values=[0.25 * p.index] * (p.index + 1) if self._has_values else None,
                ended=False,
                prompt_index=p.index,
                sample_index=sample,
            )
            for p in prompts
            for sample in range(p.samples)
        ]


@pytest.mark.parametrize("has_values", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_all_processes_have_every_completion_with_its_values(has_values, count) -> None:
    prompts = [Prompt(input_ids=(1,) * (i + 1), index=i, samples=2) for i in range(count)]
    params = SamplingParams(max_new_tokens=8, stop_token_ids=(), seed=0)
    both = on_both(lambda ring: DealtSampler(Sampler(has_values), ring).generate(prompts, params))
    assert both[0] == both[1] == Sampler(has_values).generate(prompts, params)


def rollouts(texts):
    rows = torch.ones(len(texts), 3, dtype=torch.int64)
    return RolloutBatch(
        input_ids=rows,
        attention_mask=rows.bool(),
        loss_mask=rows.bool(),
        logprobs=rows.float(),
        ended=torch.ones(len(texts), dtype=torch.bool),
        prompts=("",) * len(texts),
        completions=tuple(texts),
    )


@pytest.mark.parametrize("texts", [["a"], ["a", "bbb", "cc"]])
def test_rewards_are_shared_out_and_worked_on_apart(texts) -> None:
    """The function ends only after its process has come past ``begin``, and sees the process's own rows."""
    seen = []

    def work(ring):
        passed = threading.Event()

        def lengths(completions):
            seen.append(tuple(completions))
            return [float(passed.wait(WAIT_S) and len(text)) for text in completions]

        begun = begin(DealtReward(FunctionReward(lengths, time_limit_s=WAIT_S), ring), rollouts(texts))
        passed.set()
        return begun.rewards().tolist()

    both = on_both(work)
    assert both == [[float(len(text)) for text in texts]] * 2
    assert sorted(seen) == sorted(tuple(texts[rank::2]) for rank in range(2) if texts[rank::2])


def test_what_fails_on_one_process_stops_them_all() -> None:
    def picky(completions):
        if "bad" in completions:
            raise KeyError("gold")
        return [0.0] * len(completions)

    def work(ring):
        begun = begin(DealtReward(FunctionReward(picky, time_limit_s=WAIT_S), ring), rollouts(["good", "bad"]))
        with pytest.raises(RewardError, match="gold"):
            begun.rewards()
        return True

    assert on_both(work) == [True, True]
