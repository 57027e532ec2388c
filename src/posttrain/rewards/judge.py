"""A language model as judge: which of two answers is better, or how good one is; its scores as a reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.config.judge import scale
from posttrain.errors import RunError
from posttrain.rewards.judge_client import ChatClient, RefusedError, side_by_side
from posttrain.rewards.verdicts import (
    JudgePrompt,
    Mode,
    Verdict,
    judge_prompt,
    pairwise_verdict,
    pointwise_score,
)
from posttrain.types import RolloutBatch

Value = TypeVar("Value", bound=Verdict | float)


@dataclass(frozen=True, kw_only=True)
class Opinion(Generic[Value]):
    """What became of one question to the judge.

    Attributes:
        value: the verdict or the score; None where no answer held one, or the server refused the question.
        text: the judge's last answer. refusal: why the server refused, "" where it did not.
    """

    value: Value | None
    text: str = ""
    refusal: str = ""


class Judge:
    """Asks a chat model for verdicts, once more each time it gives none.

    Attributes:
        client: the server. prompt: what it is asked. scale: lowest and highest score.
    """

    def __init__(
        self, client: ChatClient, prompt: JudgePrompt, *, scale: tuple[float, float] = (1.0, 10.0), attempts: int = 5
    ) -> None:
        """``attempts``: how often the judge may answer before a question counts as undecided."""
        self.client = client
        self.prompt = prompt
        self.scale = scale
        self._attempts = attempts

    @classmethod
    def configured(cls, config: RunConfig, mode: Mode | None = None) -> Judge:
        """As the keys of the judge say; ``mode`` wins over ``judge_mode``.

        Raises:
            UserError: address, token or prompt cannot be used.
        """
        settings = config.judge
        prompt = judge_prompt(mode or settings.judge_mode, settings.judge_language, settings.judge_prompt)
        attempts = settings.judge_retries + 1
        return cls(ChatClient.configured(config), prompt, scale=scale(settings.judge_scale), attempts=attempts)

    def compare(self, prompt: str, first: str, second: str) -> Opinion[Verdict]:
        """Which of two answers is better: "A" the first, "B" the second, or "tie".

        Raises:
            RunError, UserError: as ``ChatClient.answer``.
        """
        return self._opinion(pairwise_verdict, prompt=prompt, answer_a=first, answer_b=second)

    def rate(self, prompt: str, answer: str) -> Opinion[float]:
        """How good an answer is, on ``scale``.

        Raises:
            RunError, UserError: as ``ChatClient.answer``.
        """
        lowest, highest = self.scale
        bounds = {"lowest": f"{lowest:g}", "highest": f"{highest:g}"}
        return self._opinion(
            lambda text: pointwise_score(text, lowest, highest), prompt=prompt, answer=answer, **bounds
        )

    def _opinion(self, read: Callable[[str], Value | None], **parts: str) -> Opinion[Value]:
        question, text = self.prompt.filled(**parts), ""
        for _ in range(self._attempts):
            try:
                text = self.client.answer([{"role": "user", "content": question}])
            except RefusedError as refusal:
                return Opinion(value=None, refusal=str(refusal))
            value = read(text)
            if value is not None:
                return Opinion(value=value, text=text)
            question = self.prompt.reminded(**parts)
        return Opinion(value=None, text=text)


class JudgeReward:
    """What a judge gives each completion on its scale, the prompt shown to it as it was rendered.

    A completion on which the judge gives no score takes the mean of the others in the batch, so that it pulls the
    policy nowhere; where that is more than half of a batch, the run stops.

    Attributes:
        num_undecided: completions without a score, so far.
    """

    def __init__(self, judge: Judge, *, concurrency: int = 8) -> None:
        """``concurrency``: completions that are judged at the same time."""
        self._judge = judge
        self._concurrency = concurrency
        self.num_undecided = 0

    @classmethod
    def configured(cls, config: RunConfig) -> JudgeReward:
        """As the keys of the judge say, whatever ``judge_mode`` is.

        Raises:
            UserError: address, token or prompt cannot be used.
        """
        return cls(Judge.configured(config, "pointwise"), concurrency=config.judge.judge_concurrency)

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] scores.

        Raises:
            RunError: the server gave no answer, or too many answers held no score.
            UserError: the server refuses the token or the model.
        """

        def rated(row: int) -> Opinion[float]:
            return self._judge.rate(batch.prompts[row], batch.completions[row])

        found = dict(side_by_side(range(len(batch)), rated, limit=self._concurrency))
        scores = [found[row].value for row in range(len(batch))]
        decided = [score for score in scores if score is not None]
        undecided = len(scores) - len(decided)
        self.num_undecided += undecided
        if 2 * undecided > len(scores):
            last = next(opinion for opinion in found.values() if opinion.value is None)
            raise RunError(
                f"judge: {self._judge.client.url} gave no score to {undecided} of {len(scores)} completions; the last "
                f"answer without one: {(last.refusal or last.text)[-200:]!r}. Another judge_model, judge_prompt or "
                "judge_max_tokens may help"
            )
        mean = sum(decided) / max(len(decided), 1)
        filled = [mean if score is None else score for score in scores]
        return torch.tensor(filled, dtype=torch.float32, device=batch.input_ids.device)
