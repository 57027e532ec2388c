"""Sequence classifiers of any kind, with the tokenizers they came with, as they read texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import UserError
from posttrain.models.fetch import resolve_model
from posttrain.models.load import DtypeName, check_model_folder, choose_dtype, first_line, load_tokenizer, quiet
from posttrain.models.probe import spare_token

Value = Literal["logit", "log_probability", "probability"]
_NO_LIMIT = 10**6


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier and one of its labels.

    Attributes:
        model: frozen, in evaluation mode. tokenizer: its own.
        label: number of the label. value: what of it is read; a model with one label gives its raw output.
        longest: tokens that it can read; None without a limit.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label: int
    value: Value
    longest: int | None

    @property
    def renders_chats(self) -> bool:
        """Whether its tokenizer brings a chat template."""
        return bool(self.tokenizer.chat_template)

    def chat_tokens(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a chat under the tokenizer's own template, its beginning cut off where it is too long.

        Raises:
            UserError: the template refuses the chat.
        """
        try:
            text: Any = self.tokenizer.apply_chat_template([dict(message) for message in chat], tokenize=False)
        except Exception as error:  # jinja's, and whatever a template raises
            raise UserError(
                f"reward_classifier: its chat template refuses a chat ({first_line(error)}); set reward_template to a "
                "text such as {question} {completion}"
            ) from error
        ids = self._ids(text, special=False)
        return ids if self.longest is None else ids[-self.longest :]

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a text with the tokens that the tokenizer puts around it; its beginning is cut if too long."""
        ids = self._ids(text, special=True)
        if self.longest is None or len(ids) <= self.longest:
            return ids
        bare = self._ids(text, special=False)
        room = max(self.longest - (len(ids) - len(bare)), 0)
        for cut in range(len(bare) - room, len(bare) + 1):  # cut text may take more tokens when it is read again
            ids = self._ids(str(self.tokenizer.decode(bare[cut:])), special=True)
            if len(ids) <= self.longest:
                break
        return ids[-self.longest :]

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        """[N] what the label gets in each row, on the CPU; rows of like length share a forward.

        Args:
            rows: N rows of token ids. batch_size: rows of one forward.
        """
        found = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found[chosen] = self._chosen(self._logits([rows[row] for row in chosen])).cpu()
        return found

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[B, labels], padded on the right.

        Classifiers of transformers that read the last token take every padding token behind it for padding; one whose
        configuration names none is padded with a token that is in no row.
        """
        model: Any = self.model
        settings = model.config.get_text_config()
        named = settings.pad_token_id
        pad = named
        if pad is None:
            pad = spare_token([self.tokenizer.pad_token_id], {token for row in rows for token in row}, self._vocabulary)
        filled = [list(row) or [pad] for row in rows]
        width = max(map(len, filled))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in filled], device=model.device)
        lengths = torch.tensor([len(row) for row in filled], device=model.device)
        mask = torch.arange(width, device=model.device)[None, :] < lengths[:, None]
        settings.pad_token_id = pad
        try:
            logits: Tensor = model(input_ids=ids, attention_mask=mask.long()).logits
        finally:
            settings.pad_token_id = named
        return logits.float()

    @property
    def _vocabulary(self) -> int:
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def _chosen(self, logits: Tensor) -> Tensor:
        if self.value == "logit" or logits.shape[1] == 1:
            return logits[:, self.label]
        if self.model.config.problem_type == "multi_label_classification":
            logprobs = torch.nn.functional.logsigmoid(logits)
        else:
            logprobs = logits.log_softmax(dim=1)
        chosen = logprobs[:, self.label]
        return chosen if self.value == "log_probability" else chosen.exp()


def load_classifier(
    name_or_path: str,
    *,
    label: str | None = None,
    value: Value = "logit",
    dtype: DtypeName = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
) -> Classifier:
    """A sequence classifier of any architecture.

    Args:
        name_or_path: a folder, or a name on the hub.
        label: name or number; may be left out where there is one.
        value: see ``Classifier``.
        dtype, device, trust_remote_code, cache_dir: as for language models.

    Raises:
        UserError: it is no sequence classifier, lacks weights, or has no such label.
    """
    folder = Path(resolve_model(name_or_path, cache_dir=cache_dir))
    check_model_folder(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    chosen, _ = choose_dtype(dtype, device, folder)
    try:
        with quiet():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=chosen,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # configuration, architecture and weight files fail with classes of their own
        raise UserError(
            f"reward_classifier: {folder} cannot be loaded as a sequence classifier: {first_line(error)}"
        ) from error
    model = loaded[0].requires_grad_(False).eval().to(torch.device(device))
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise UserError(
            f"reward_classifier: {folder} lacks {len(missing)} of the weights of a sequence classifier, among them "
            f"{missing[0]}; name a model that was trained to classify."
        )
    return Classifier(
        model=model,
        tokenizer=tokenizer,
        label=_label(model.config, label, name_or_path),
        value=value,
        longest=_longest(model.config, tokenizer),
    )


def _label(config: Any, wanted: str | None, name: str) -> int:
    """The number of a label.

    Raises:
        UserError: it is not there, or several are and none is named.
    """
    names = {int(number): str(text) for number, text in config.id2label.items()}
    listed = ", ".join(f"{number}: {text}" for number, text in sorted(names.items()))
    if wanted is None:
        if config.num_labels == 1:
            return 0
        raise UserError(
            f"reward_label is missing: {name} has {config.num_labels} labels ({listed}); which is the reward?"
        )
    found = [number for number, text in names.items() if text == wanted]
    found = found or [number for number, text in names.items() if text.lower() == wanted.lower()]
    if not found and wanted.isdecimal() and int(wanted) < config.num_labels:
        found = [int(wanted)]
    if len(found) != 1:
        raise UserError(f"reward_label: {name} has no label {wanted!r}; its labels are {listed}")
    return found[0]


def _longest(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that a classifier can read."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (tokenizer.model_max_length, positions) if isinstance(limit, int)]
    return min((limit for limit in limits if 0 < limit < _NO_LIMIT), default=None)
