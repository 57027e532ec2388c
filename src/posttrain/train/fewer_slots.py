"""Sampling that goes on with fewer sequences side by side where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.engine import TooLargeError, attempted, release_memory
from posttrain.engine.shares import OutOfMemory
from posttrain.rollout import Completion, Progress, Prompt, SamplingParams, SlotSampler


class FewerSlots(SlotSampler):
    """A slot sampler that begins again with half its slots, for good, when memory runs out.

    A completion's random numbers are its own, so the number of slots changes none of them.
    """

    def __init__(self, model: Any, *, announce: Callable[[str], None], **options: Any) -> None:
        """As ``SlotSampler``; ``announce`` is told when slots get fewer."""
        super().__init__(model, **options)
        self._announce = announce

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """See ``SlotSampler.generate``.

        Raises:
            TooLargeError: memory does not suffice for one sequence.
        """
        used = min(self.num_slots, sum(prompt.samples for prompt in prompts))
        sample = super().generate
        while isinstance(found := attempted(lambda: sample(prompts, params, progress)), OutOfMemory):
            if used <= 1:
                raise TooLargeError(f"memory ran out while one completion was sampled by itself ({found.message}).")
            used //= 2
            self.num_slots = used
            self.prefill_tokens = max(1, self.prefill_tokens // 2)
            release_memory()
            self._announce(
                f"memory ran out while completions were sampled; they are sampled again {used} at a time, and so are "
                "all that follow (num_rollout_slots). It draws the same"
            )
        return found
