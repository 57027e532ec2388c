"""What a request makes the worker do, and what comes back of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from posttrain.data.template import EncodedRow
from posttrain.rollout import SamplingParams
from posttrain.rollout.in_progress import Group, Sample
from posttrain.serve.server.models import Voice
from posttrain.serve.server.refusals import RequestRefusedError
from posttrain.serve.server.text import TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token, its log-probability at temperature 1, and the most probable ones in its place with theirs."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has become certain of one choice, and the tokens that were drawn since the piece before."""

    choice: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """One choice is complete."""

    choice: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Done:
    """The whole job is; without ``error`` it succeeded."""

    error: RequestRefusedError | None = None


Event = Piece | End | Done


@dataclass(eq=False)
class Job:
    """Something for the worker.

    Attributes:
        send: receives events, in the worker's thread.
        arrived: when, as ``time.monotonic`` has it. begun: whether it waits no more.
        is_over: nothing more is sent.
    """

    send: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    begun: bool = False
    is_over: bool = False

    def end(self, error: RequestRefusedError | None = None) -> None:
        """Say that nothing more comes."""
        if not self.is_over:
            self.is_over = True
            self.send(Done(error))


@dataclass(eq=False, kw_only=True)
class TextJob(Job):
    """Completions of prompts; choice number ``prompt * samples + sample``.

    Attributes:
        voice: who answers. prompts: token ids. samples: choices of each prompt. params: how they are drawn.
        stops: texts that end a choice. alternatives: tokens that are told beside each; None tells none at all.
        groups: in the decoder, once it is there. num_drawn: tokens of all choices so far.
    """

    voice: Voice
    prompts: Sequence[tuple[int, ...]]
    samples: int
    params: SamplingParams
    stops: tuple[str, ...] = ()
    alternatives: int | None = None
    groups: list[Group] = field(default_factory=list)
    num_drawn: int = 0
    _streams: dict[int, TextStream] = field(default_factory=dict)
    _untold: dict[int, list[TokenInfo]] = field(default_factory=dict)
    _left: int = 0

    def __post_init__(self) -> None:
        self._left = len(self.prompts) * self.samples

    def take(self, choice: int, sample: Sample, logits: Tensor) -> bool:
        """A new token of a choice, and the logits [V] that it was drawn from; False where a stop string has come."""
        self.num_drawn += 1
        if choice not in self._streams:
            self._streams[choice] = TextStream(self.voice.decode, self.stops)
        stream = self._streams[choice]
        if self.alternatives is not None:
            info = token_info(sample.token_ids[-1], logits, self.alternatives)
            self._untold.setdefault(choice, []).append(info)
        text = "" if sample.ended else stream.add(sample.token_ids[-1])
        finished = sample.ended or stream.is_stopped or len(sample.token_ids) == self.params.max_new_tokens
        if finished:
            text += stream.finish()
        if text or (finished and choice in self._untold):
            self.send(Piece(choice, text, tuple(self._untold.pop(choice, ()))))
        if finished:
            self.send(End(choice, "stop" if sample.ended or stream.is_stopped else "length"))
            self._left -= 1
            if not self._left:
                self.end()
        return not stream.is_stopped


@dataclass(eq=False, kw_only=True)
class ScoreJob(Job):
    """Scores of texts.

    Attributes:
        rows: what the reward model reads, None where a text does not fit. scores: of the first of them, so far.
    """

    rows: Sequence[EncodedRow | None]
    scores: list[float | None] = field(default_factory=list)


def token_info(token: int, logits: Tensor, alternatives: int) -> TokenInfo:
    """A token's log-probability, and those of the most probable ones.

    Args:
        token: that was drawn. logits: [V] that it was drawn from. alternatives: how many others are told.
    """
    logprobs = logits.float().log_softmax(-1)
    best: list[tuple[int, float]] = []
    if alternatives:
        values, ids = torch.topk(logprobs, min(alternatives, len(logprobs)))
        best = list(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenInfo(token, float(logprobs[token]), tuple(best))
