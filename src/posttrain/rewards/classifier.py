"""A sequence classifier as the reward: it reads texts, so it may have a tokenizer and a template of its own."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.errors import RewardError, UserError
from posttrain.models.classifier import Classifier, load_classifier
from posttrain.types import RolloutBatch

CHAT = "chat"
PLAIN = "{question}\n{completion}"
_OWN = ("prompt", "completion", "question")


class ClassifierReward:
    """What a classifier says of one label of each text.

    The text is a template filled with ``{completion}``, ``{prompt}`` as the actor read it, ``{question}`` (the last
    user message) and columns of the prompt's row; or, with template "chat", the chat in the classifier's own template.
    """

    def __init__(self, classifier: Classifier, *, template: str | None = None, batch_size: int = 32) -> None:
        """Take a classifier.

        Args:
            classifier: with the label that is the reward.
            template: see above; None is "chat" where the tokenizer has a template, else ``PLAIN``.
            batch_size: rows of one forward.

        Raises:
            UserError: the template cannot be used.
        """
        self._classifier, self._size = classifier, batch_size
        self._template = template or (CHAT if classifier.renders_chats else PLAIN)
        self._columns = () if self._template == CHAT else _columns(self._template)
        if self._template == CHAT and not classifier.renders_chats:
            raise UserError(
                "reward_template: chat needs a classifier whose tokenizer has a chat template, and this one has none; "
                "give a text such as {question} {completion}"
            )

    @classmethod
    def configured(cls, config: RunConfig, device: str | torch.device = "cpu") -> ClassifierReward:
        """The classifier that the configuration names, on ``reward_device``, else on ``device``.

        Raises:
            UserError: it cannot be loaded, has no such label, or the template or the device cannot be used.
        """
        keys = config.reward
        assert keys.reward_classifier is not None
        classifier = load_classifier(
            keys.reward_classifier,
            label=keys.reward_label,
            value=keys.reward_label_value,
            dtype=keys.reward_dtype,
            device=_device(keys.reward_device) if keys.reward_device else device,
            trust_remote_code=config.model.trust_remote_code,
            cache_dir=config.model.cache_dir,
        )
        return cls(classifier, template=keys.reward_template, batch_size=keys.reward_batch_size)

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse rows that lack a column of the template.

        Raises:
            UserError: names the first of them.
        """
        for number, row in enumerate(rows if self._columns else (), start=1):
            for name in self._columns:
                if name not in row:
                    raise UserError(
                        f"reward_template: row {number} of the data has no column `{name}` (columns: "
                        f"{', '.join(sorted(row)) or 'none'})"
                    )

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] scores.

        Raises:
            RewardError: the classifier gives anything but finite numbers.
        """
        if self._template == CHAT:
            rows = [
                self._classifier.chat_tokens([*chat, {"role": "assistant", "content": completion}])
                for chat, completion in zip(batch.messages, batch.completions, strict=True)
            ]
        else:
            rows = [self._classifier.text_tokens(text) for text in self.texts(batch)]
        scores = self._classifier.scores(rows, self._size)
        if not scores.isfinite().all():
            bad = int((~scores.isfinite()).nonzero()[0])
            raise RewardError(
                f"the classifier gave {float(scores[bad])} for completion {bad + 1} of {len(batch)} "
                f"({batch.completions[bad][:60]!r}); set reward_dtype: float32."
            )
        return scores.to(batch.input_ids.device)

    def texts(self, batch: RolloutBatch) -> list[str]:
        """What the classifier reads, with a template of text."""
        found = []
        for row, completion in enumerate(batch.completions):
            chat = batch.messages[row] if batch.messages else ()
            questions = [message["content"] for message in chat if message["role"] == "user"]
            values = {
                **(batch.extras[row] if batch.extras else {}),
                "completion": completion,
                "prompt": batch.prompts[row] if batch.prompts else "",
                "question": questions[-1] if questions else "",
            }
            found.append(_filled(self._template, values))
        return found


def _columns(template: str) -> tuple[str, ...]:
    """Names of the columns in a template.

    Raises:
        UserError: it has a stray brace, something else than names in braces, or no completion.
    """
    try:
        names = [name for _, name, *rest in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"reward_template: {error}; a brace that is meant is written twice") from None
    strange = [name for name in names if not name or any(mark in name for mark in ".[]")]
    if strange:
        raise UserError(f"reward_template: {{{strange[0]}}} is no name of a column")
    if "completion" not in names:
        raise UserError("reward_template: the text has no {completion}, so all answers to a prompt would get one score")
    return tuple(dict.fromkeys(name for name in names if name not in _OWN))


def _filled(template: str, values: Mapping[str, Any]) -> str:
    """The template with names replaced; format specifications are left out."""
    parts: list[str] = []
    for text, name, *_ in string.Formatter().parse(template):
        parts.append(text)
        if name is not None:
            parts.append(str(values.get(name, "")))
    return "".join(parts)


def _device(name: str) -> torch.device:
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"reward_device: {name} cannot be used ({lines[0]}); write cpu, cuda or cuda:1") from error
    return chosen
