"""Sampling and scoring shared out among the processes of a run: each does a part, all get the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from posttrain.engine import Processes, dealt
from posttrain.errors import RewardError
from posttrain.rewards import Job, Reward, job
from posttrain.rollout import Completion, Progress, Prompt, Sampler, SamplingParams
from posttrain.types import RolloutBatch


class DealtSampler:
    """Every process completes some of the prompts; a prompt's index, not its place, makes its random numbers."""

    def __init__(self, sampler: Sampler, processes: Processes) -> None:
        """Share out what ``sampler`` would do."""
        self._sampler, self._processes = sampler, processes

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """See ``Sampler.generate``; ``progress`` hears of this process's part."""
        costs = [len(prompt.input_ids) + prompt.samples * params.max_new_tokens for prompt in prompts]
        owners = dealt(costs, [0] * self._processes.size)
        own = [prompt for prompt, owner in zip(prompts, owners, strict=True) if owner == self._processes.rank]
        found = iter(self._sampler.generate(own, params, progress) if own else [])
        rows = [
            (prompt.index, sample, next(found) if owner == self._processes.rank else None)
            for prompt, owner in zip(prompts, owners, strict=True)
            for sample in range(prompt.samples)
        ]
        return self._whole(rows)

    def load_weights(self, weights: Mapping[str, Tensor] | None, *, version: int) -> None:
        """See ``Sampler.load_weights``."""
        self._sampler.load_weights(weights, version=version)

    def _whole(self, rows: Sequence[tuple[int, int, Completion | None]]) -> list[Completion]:
        """All completions, from (prompt index, sample index, the completion if it was made here)."""
        shapes = torch.zeros(3, len(rows), dtype=torch.int64)  # length, ended, whether values are recorded
        for row, (_, _, completion) in enumerate(rows):
            if completion is not None:
                known = completion.values is not None
                shapes[:, row] = torch.tensor([len(completion.token_ids), int(completion.ended), int(known)])
        lengths, ended, known_values = self._processes.sum(shapes).tolist()
        token_ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
        logprobs = torch.zeros(len(rows), max(lengths), dtype=torch.float64)
        values = torch.zeros(len(rows), max(lengths), dtype=torch.float64)
        for row, (_, _, completion) in enumerate(rows):
            if completion is not None:
                token_ids[row, : lengths[row]] = torch.tensor(completion.token_ids)
                logprobs[row, : lengths[row]] = torch.tensor(completion.logprobs, dtype=torch.float64)
                if completion.values is not None:
                    values[row, : lengths[row]] = torch.tensor(completion.values, dtype=torch.float64)
        token_ids, logprobs = self._processes.sum(token_ids), self._processes.sum(logprobs)
        if any(known_values):
            values = self._processes.sum(values)
        return [
            Completion(
                token_ids=token_ids[row, : lengths[row]].tolist(),
                logprobs=logprobs[row, : lengths[row]].tolist(),
                values=values[row, : lengths[row]].tolist() if known_values[row] else None,
                ended=bool(ended[row]),
                prompt_index=prompt_index,
                sample_index=sample_index,
            )
            for row, (prompt_index, sample_index, _) in enumerate(rows)
        ]


class DealtReward:
    """Every process scores some of the rows, so that all go on with the same scores whatever a clock or a lock says.

    For rewards that work on their own; ``RoleReward`` is shared out by the engine.
    """

    def __init__(self, reward: Reward, processes: Processes) -> None:
        """Share out what ``reward`` would do."""
        self._reward, self._processes = reward, processes

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] scores.

        Raises:
            RewardError: on every process, if one of them cannot score its part.
        """
        own = self._own(batch)
        return self._gathered(self._part(own, batch), batch)

    def job(self, batch: RolloutBatch) -> Job | None:
        """The same for a thread, where the reward is for one; processes meet in the thread that goes on."""
        own = self._own(batch)
        if job(self._reward, own) is None:
            return None
        return Job(lambda: self._part(own, batch), lambda part: self._gathered(part, batch))

    def _own(self, batch: RolloutBatch) -> RolloutBatch:
        """The rows that this process scores; may be none."""
        return batch.rows(self._owned(batch))

    def _owned(self, batch: RolloutBatch) -> Tensor:
        return torch.arange(self._processes.rank, len(batch), self._processes.size, device=batch.input_ids.device)

    def _part(self, own: RolloutBatch, batch: RolloutBatch) -> tuple[Tensor, str]:
        """[B] with the scores of the own rows and 0 elsewhere, and why there are none."""
        scores = torch.zeros(len(batch), device=batch.input_ids.device)
        if len(own):
            try:
                scores[self._owned(batch)] = self._reward(own).float().to(scores.device)
            except RewardError as error:
                return scores, str(error)
        return scores, ""

    def _gathered(self, part: tuple[Tensor, str], batch: RolloutBatch) -> Tensor:
        scores, failure = part
        # all of them stop at the same point, so that they can write the checkpoint that they owe
        for text in self._processes.gather(failure):
            if text:
                raise RewardError(text)
        return self._processes.sum(scores)
