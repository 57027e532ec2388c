"""Prompts and completions that the slot engine is at work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from posttrain.rollout.protocol import Completion, Prompt, SamplingParams


@dataclass(eq=False)
class Group:
    """A prompt and its completions in progress.

    Attributes:
        params: how they are drawn. watch: is told of every token.
        drawing: equal for groups whose tokens can be drawn in one call.
    """

    prompt: Prompt
    params: SamplingParams
    watch: Watcher | None = None
    sequences: list[Sample] = field(default_factory=list)
    drawing: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.drawing = self.params.drawing


@dataclass(eq=False, slots=True)
class Sample:
    """A completion in progress; ``seen`` is kept only for the repetition penalty.

    Attributes:
        ended: by a stop token. stopped: by who watches it.
    """

    group: Group
    sample_index: int
    numbers: list[float]
    seen: Tensor | None
    values: list[float] | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    stopped: bool = False

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are stored: all but the newest."""
        return len(self.group.prompt.input_ids) + len(self.token_ids) - 1

    @property
    def cached_tokens(self) -> tuple[int, ...]:
        """These tokens."""
        return (*self.group.prompt.input_ids, *self.token_ids[:-1])

    @property
    def finished(self) -> bool:
        """Whether its last token is drawn."""
        return self.ended or self.stopped or len(self.token_ids) == self.group.params.max_new_tokens

    def completion(self) -> Completion:
        """What the caller gets."""
        return Completion(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            ended=self.ended,
            prompt_index=self.group.prompt.index,
            sample_index=self.sample_index,
            values=self.values,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """Tokens ``start`` to ``stop`` of a prompt on their way into a slot, where those before them lie."""

    group: Group
    slot: int
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete with them."""
        return self.stop == len(self.group.prompt.input_ids)


Watcher = Callable[[Sample, Tensor], bool]
"""Called with a sequence that has a new token and the logits [V] that it was drawn from; False ends the sequence."""
