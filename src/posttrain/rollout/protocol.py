"""What a sampler is asked and what it answers; the seam between the online loop and any generation engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from posttrain.config import GenerationConfig
from posttrain.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn; one ``generate`` call has the same for all its sequences.

    Attributes:
        max_new_tokens: a completion is cut after this many tokens.
        min_new_tokens: the stop tokens are impossible before this many.
        temperature: divides the logits; ignored when ``do_sample`` is False.
        top_k: only the k most probable tokens; 0 is all.
        top_p: only the most probable tokens that together reach this mass; 1 is all.
        min_p: only tokens at least this fraction as probable as the most probable one; 0 is all.
        repetition_penalty: logits of tokens already in prompt or completion are divided (if positive) or multiplied
            (if negative) by this; 1 is none.
        do_sample: False takes the most probable token.
        stop_token_ids: a completion ends with the first of these, which is part of it.
        seed, iteration: with the prompt's and the sample's index they determine a sequence's random numbers.

    Raises:
        UserError: a value outside its range.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int
    iteration: int = 0
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    do_sample: bool = True

    @classmethod
    def configured(
        cls, generation: GenerationConfig, *, stop_token_ids: tuple[int, ...], seed: int, iteration: int = 0
    ) -> SamplingParams:
        """As the configuration's keys say.

        Raises:
            UserError: a value outside its range.
        """
        return cls(
            max_new_tokens=generation.max_new_tokens,
            stop_token_ids=stop_token_ids,
            seed=seed,
            iteration=iteration,
            min_new_tokens=generation.min_new_tokens,
            temperature=generation.temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
            do_sample=generation.do_sample,
        )

    @property
    def filters(self) -> bool:
        """Whether improbable tokens are left out of the draw."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def drawing(self) -> tuple[Any, ...]:
        """What decides how a row of logits becomes a token, once its random number is known."""
        how = (self.temperature, self.top_k, self.top_p, self.min_p) if self.do_sample else ()
        return self.do_sample, self.repetition_penalty, self.stop_token_ids, how

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            "temperature": (self.temperature > 0 or not self.do_sample, "above 0 (for greedy set do_sample: false)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for key, (holds, expected) in rules.items():
            if not holds:
                raise UserError(f"{key} is {getattr(self, key)}; it must be {expected}")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt and how many completions it should get.

    Attributes:
        input_ids: the rendered prompt, generation prompt included; not empty.
        index: identifies the prompt in the run: it seeds the prompt's random numbers, wherever it is generated.
        samples: number of completions.
    """

    input_ids: tuple[int, ...]
    index: int
    samples: int = 1

    def __post_init__(self) -> None:
        if not self.input_ids:
            raise ValueError(f"prompt {self.index} has no tokens")
        if self.samples < 1:
            raise ValueError(f"prompt {self.index} asks for {self.samples} samples; at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        token_ids: the completion's tokens, its stop token included when ``ended``.
        logprobs: for each of them log p under the policy: after temperature, before every other processor.
        ended: True if a stop token ended it, False if it was cut at ``max_new_tokens``.
        prompt_index: ``Prompt.index``. sample_index: 0 .. samples - 1.
        values: for each token the value of the state before it, where the sampler has the critic's head; else None.
    """

    token_ids: list[int]
    logprobs: list[float]
    ended: bool
    prompt_index: int
    sample_index: int
    values: list[float] | None = None


class Sampler(Protocol):
    """Anything that completes prompts with a policy."""

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """Complete every prompt ``samples`` times.

        Args:
            prompts: the work, in any number.
            params: how to draw.
            progress: called with (completions done, completions in all) whenever some are done.

        Returns:
            Completions, prompt-major and sample-minor in the order of ``prompts``.
        """
        ...

    def load_weights(self, weights: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Sample from this policy from now on.

        Args:
            weights: name -> tensor of what changed; None when the sampler holds the very model that is trained.
            version: iteration the weights belong to.
        """
        ...
