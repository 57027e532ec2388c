"""A sampler that says what it was told to: loops are tested with it, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from posttrain.rollout.protocol import Completion, Progress, Prompt, SamplingParams


class ScriptedSampler:
    """Answers from a function.

    Args:
        script: (prompt, sample index) -> the completion's token ids; what follows the first stop token, or
            ``max_new_tokens``, is cut off.
        logprob: the log-probability that every token is given.

    Attributes:
        calls: (prompts, params) of every ``generate``.
        versions: version of every ``load_weights``.
    """

    def __init__(self, script: Callable[[Prompt, int], Sequence[int]], *, logprob: float = -1.0) -> None:
        self.script = script
        self.logprob = logprob
        self.calls: list[tuple[tuple[Prompt, ...], SamplingParams]] = []
        self.versions: list[int] = []

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, progress: Progress | None = None
    ) -> list[Completion]:
        """See ``Sampler.generate``.

        Raises:
            ValueError: the script gives an empty completion.
        """
        self.calls.append((tuple(prompts), params))
        completions = [self._complete(p, index, params) for p in prompts for index in range(p.samples)]
        if progress is not None:
            progress(len(completions), len(completions))
        return completions

    def load_weights(self, weights: Mapping[str, Tensor] | None, *, version: int) -> None:
        """Remember the version."""
        self.versions.append(version)

    def _complete(self, prompt: Prompt, index: int, params: SamplingParams) -> Completion:
        token_ids = list(self.script(prompt, index))[: params.max_new_tokens]
        if not token_ids:
            raise ValueError(f"the script gives no token for prompt {prompt.index}, sample {index}")
        stop = next((i for i, token in enumerate(token_ids) if token in params.stop_token_ids), None)
        if stop is not None:
            token_ids = token_ids[: stop + 1]
        return Completion(
            token_ids=token_ids,
            logprobs=[self.logprob] * len(token_ids),
            ended=stop is not None,
            prompt_index=prompt.index,
            sample_index=index,
        )
