"""A language model as judge: which of two answers is better, or how good one is; its scores as a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from posttrain.config import RunConfig
from posttrain.config.judge import scale
from posttrain.data.formats import ROLE_NAMES, Message
from posttrain.errors import RewardError, UserError
from posttrain.rewards.judge_client import ChatClient, RefusedError, side_by_side
from posttrain.rewards.scores import OnError, Strict
from posttrain.rewards.verdicts import (
    JudgePrompt,
    Mode,
    Verdict,
    judge_prompt,
    pairwise_verdict,
    pointwise_score,
    transcript,
    with_system,
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
            RewardError, UserError: as ``ChatClient.answer``.
        """
        return self._opinion(pairwise_verdict, prompt=prompt, answer_a=first, answer_b=second)

    def rate(self, prompt: str, answer: str) -> Opinion[float]:
        """How good an answer is, on ``scale``.

        Raises:
            RewardError, UserError: as ``ChatClient.answer``.
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
    """What a judge gives each completion on its scale."""

    is_apart = True

    def __init__(
        self,
        judge: Judge,
        *,
        concurrency: int = 8,
        system: str | None = None,
        on_error: OnError = "stop",
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Take a judge that rates single answers.

        Args:
            judge: its prompt is pointwise. concurrency: completions that are judged at the same time.
            system: the system message of chats that have none, as the policy read them.
            on_error, notify: what becomes of a completion that the judge gives no score, see ``Strict``.
        """
        self._judge, self._concurrency, self._system = judge, concurrency, system
        self._strict = Strict(f"the judge {judge.client.model}", on_error=on_error, notify=notify)
        self._has_scored = False

    @classmethod
    def configured(cls, config: RunConfig, notify: Callable[[str], None] = lambda sentence: None) -> JudgeReward:
        """As the keys of the judge say, whatever ``judge_mode`` is.

        Raises:
            UserError: address, token or prompt cannot be used.
        """
        return cls(
            Judge.configured(config, "pointwise"),
            concurrency=config.judge.judge_concurrency,
            system=config.data.default_system,
            on_error=config.reward.reward_on_error,
            notify=notify,
        )

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] scores.

        Raises:
            RewardError: the server gave no answer, or an answer no score where that is to stop the run.
            UserError: the server refuses token or model from the start.
        """
        try:
            found = dict(side_by_side(range(len(batch)), lambda row: self._rated(batch, row), limit=self._concurrency))
        except UserError as refusal:
            if not self._has_scored:
                raise
            raise RewardError(str(refusal)) from refusal  # a run under way is worth a checkpoint
        self._has_scored = True
        opinions = [found[row] for row in range(len(batch))]
        return self._strict.rewards([o.refusal or o.text if o.value is None else o.value for o in opinions], batch)

    def _rated(self, batch: RolloutBatch, row: int) -> Opinion[float]:
        shown = batch.prompts[row] if batch.prompts else ""
        if batch.messages:
            shown = transcript(_chat(batch.messages[row], self._system), self._judge.prompt.language)
        return self._judge.rate(shown, batch.completions[row])


def _chat(messages: Sequence[Mapping[str, str]], system: str | None) -> tuple[Message, ...]:
    chat = tuple(Message(ROLE_NAMES[message["role"]], message["content"]) for message in messages)
    return with_system(chat, system)
