"""What answers are worth by the reward of the configuration, a model of this command or another program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.data.answers import as_rows
from posttrain.data.batches import collate
from posttrain.data.encode import EncodedPrompt
from posttrain.data.template import EncodedRow, Template, pad_token_id
from posttrain.evaluate.bench import Bench
from posttrain.evaluate.wardrobe import Wardrobe
from posttrain.rewards import build_reward
from posttrain.rewards.role import RoleReward
from posttrain.types import Batch, RolloutBatch


class Worth:
    """Scores texts that answer prompts with the reward that the configuration describes."""

    def __init__(self, bench: Bench, prompts: Sequence[EncodedPrompt], template: Template) -> None:
        """Make the reward, and let it look at the rows.

        Raises:
            UserError: there is no reward, or a row lacks what it reads.
        """
        self._bench, self._prompts, self._template = bench, prompts, template
        wardrobe = bench.wardrobe
        self._reward = build_reward(
            bench.config,
            role=RoleReward(lambda batch: _by_reward_model(wardrobe, batch)) if wardrobe.reward else None,
            rows=[prompt.extras for prompt in prompts],
            decode=lambda ids: str(wardrobe.tokenizer.decode(list(ids))),
            device=wardrobe.device,
            notify=bench.notify,
        )

    def of(self, texts: Sequence[str], name: str = "") -> list[float]:
        """What each text is worth as the answer to the prompt in its place."""
        found: list[float] = []
        size = self._bench.batch_size
        for start in range(0, len(texts), size):
            places = range(start, min(start + size, len(texts)))
            found += self._reward(self._batch(places, texts)).float().tolist()
            self._bench.progress(f"reward {name}".strip(), len(found), len(texts))
        return found

    def _batch(self, places: Sequence[int], texts: Sequence[str]) -> RolloutBatch:
        prompts = [self._prompts[place] for place in places]
        rows = []
        for place, prompt in zip(places, prompts, strict=True):
            answer = self._template.encode_answer(texts[place])
            mask = [False] * len(prompt.input_ids) + [True] * len(answer)
            rows.append(EncodedRow(input_ids=[*prompt.input_ids, *answer], loss_mask=mask))
        batch = collate(rows, pad_token_id(self._template.tokenizer))
        return RolloutBatch(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            loss_mask=batch.loss_mask,
            logprobs=torch.zeros(batch.input_ids.shape),
            ended=torch.ones(len(rows), dtype=torch.bool),
            prompts=tuple(prompt.text for prompt in prompts),
            completions=tuple(texts[place] for place in places),
            extras=tuple(prompt.extras for prompt in prompts),
            messages=tuple(tuple(as_rows(prompt.messages)) for prompt in prompts),
        )


def has_reward(config: RunConfig) -> bool:
    """Whether the configuration names something that scores answers."""
    reward = config.reward
    return bool(reward.reward_model or reward.reward_classifier or reward.reward_funcs)


def _by_reward_model(wardrobe: Wardrobe, batch: Batch) -> Tensor:
    assert wardrobe.reward is not None
    return wardrobe.scores(wardrobe.reward, batch)
