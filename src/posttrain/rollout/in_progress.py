"""Prompts and completions that the slot engine is at work on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from posttrain.rollout.protocol import Completion, Prompt


@dataclass(eq=False)
class Group:
    """A prompt and its completions in progress."""

    prompt: Prompt
    sequences: list[Sample] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Sample:
    """A completion in progress; ``seen`` is kept only for the repetition penalty."""

    group: Group
    sample_index: int
    numbers: list[float]
    seen: Tensor | None
    values: list[float] | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are stored: all but the newest."""
        return len(self.group.prompt.input_ids) + len(self.token_ids) - 1

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
