"""A reward model's folder as a judge of text: chats and answers in, scores out."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.data.batches import collate
from posttrain.data.encode import encode_chat
from posttrain.data.formats import ChatExample, Message, Messages, UnusableRowError
from posttrain.data.template import EncodedRow, Template, pad_token_id
from posttrain.engine.microbatches import DEFAULT_MAX_TOKENS, microbatches
from posttrain.errors import RunError, UserError
from posttrain.models.backbone import device, load_backbone, precision
from posttrain.models.chains import base_of, check_links
from posttrain.models.fetch import resolve_model
from posttrain.models.forward import answer, is_packed, prepare_trunk
from posttrain.models.heads import ScalarHead, trunk_width
from posttrain.models.lineage import check_template, fingerprint
from posttrain.models.load import load_tokenizer
from posttrain.models.merging import dress
from posttrain.models.quantize import Quantization
from posttrain.models.reward_folder import RewardFolder, load_reward_trunk, read_reward_folder
from posttrain.types import Batch

Notify = Callable[[str], None]


class FolderScorer:
    """Scores answers with a reward model of any origin, on the model it was trained on.

    Attributes:
        template: renders chats as the reward model reads them.
    """

    def __init__(
        self, model: PreTrainedModel, head: ScalarHead, template: Template, *, cutoff_len: int, max_tokens: int
    ) -> None:
        """Take a frozen trunk and its head; ``max_tokens`` of one forward, ``cutoff_len`` of one sequence."""
        self.template = template
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self._head = head.to(self._device)
        self._cutoff_len, self._max_tokens = cutoff_len, max_tokens

    @classmethod
    def configured(cls, config: RunConfig, folder: str, *, notify: Notify) -> FolderScorer:
        """The reward model of a folder.

        An adapter is put on ``model_name_or_path`` where that is what it was trained on, else on the base that it
        records.

        Args:
            config: names the model, the template and the longest sequence.
            folder: what ``read_reward_folder`` reads.
            notify: receives sentences for the user.

        Raises:
            UserError: the folder is no reward model, or what it was trained on cannot be had.
        """
        reward = read_reward_folder(folder)
        for note in reward.notes:
            notify(note)
        model, base = _trunk(config, reward, notify)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # padded batches score the same
            if not is_packed(model):
                prepare_trunk(model)
        tokenizer = _tokenizer(config, reward.folder, base)
        template = Template.configured(tokenizer, config.data)
        differs = check_template(
            reward.lineage,
            template.fingerprint,
            folder=reward.folder,
            key="judge",
            example=template.example,
            allow_mismatch=config.model.allow_mismatch,
        )
        if differs:
            notify(differs)
        return cls(
            model,
            reward.head(trunk_width(model.config)),
            template,
            cutoff_len=config.data.cutoff_len,
            max_tokens=config.train.max_tokens_per_microbatch or DEFAULT_MAX_TOKENS,
        )

    def scores(self, answered: Sequence[tuple[Messages, str]]) -> list[float | None]:
        """A score for each (prompt, answer), cut to ``cutoff_len`` as training cuts; None where nothing can be cut.

        Raises:
            RunError: a score is no number.
        """
        return self.row_scores([self.chat_row((*prompt, Message("assistant", text))) for prompt, text in answered])

    def row_scores(self, rows: Sequence[EncodedRow | None]) -> list[float | None]:
        """A score for each row; None for None.

        Raises:
            RunError: a score is no number.
        """
        usable = [row for row in rows if row is not None]
        found = iter(self._scored(usable) if usable else [])
        return [None if row is None else next(found) for row in rows]

    @torch.no_grad()
    def _scored(self, rows: Sequence[EncodedRow]) -> list[float]:
        batch = collate(rows, pad_token_id(self.template.tokenizer))
        numbered = _Numbered(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            loss_mask=batch.loss_mask,
            number=torch.arange(len(rows)),
        )
        found = torch.zeros(len(rows))
        for piece in microbatches(numbered, self._max_tokens):
            out = answer(self._model, {"score": self._head}, piece.to(self._device), wants=("score",))
            assert out.scores is not None
            found[piece.number] = out.scores.float().cpu()
        scores = [float(score) for score in found.tolist()]
        if not all(map(math.isfinite, scores)):
            raise RunError("judge: the reward model gave a score that is no number; its weights may be damaged")
        return scores

    def chat_row(self, messages: Messages) -> EncodedRow | None:
        """A chat that ends with an answer, cut to ``cutoff_len`` as training cuts; None where nothing can be cut.

        Raises:
            UserError: the template refuses the chat.
        """
        try:
            return encode_chat(ChatExample(messages=messages), self.template, self._cutoff_len)[0]
        except UnusableRowError:
            return None

    def text_row(self, text: str) -> EncodedRow:
        """A text as it is, with the special tokens that stand in it; too long a one loses its beginning."""
        ids = self.template.tokens(text)[-self._cutoff_len :]
        return EncodedRow(ids, [False] * (len(ids) - 1) + [True])


def reward_identity(folder: str) -> dict[str, str]:
    """What tells a reward model from another in the same folder: fingerprints of its adapters and its head.

    Raises:
        UserError: the folder is no reward model.
    """
    reward = read_reward_folder(folder)
    head = hashlib.sha256(reward.found.weight.detach().float().contiguous().numpy().tobytes()).hexdigest()
    return {"head": head, **{f"adapter {n}": link.fingerprint for n, link in enumerate(reward.links, start=1)}}


def _trunk(config: RunConfig, reward: RewardFolder, notify: Notify) -> tuple[PreTrainedModel, Path | None]:
    """The trunk under the head, adapters in its weights; and the folder of the base model, for its tokenizer."""
    if reward.kind == "model":
        dtype, _ = precision(config, device())
        remote = config.model.trust_remote_code
        named = config.model.model_name_or_path
        how = Quantization.of_bits(config.model, config.model.reward_model_quantization_bit)
        trunk = load_reward_trunk(reward, dtype=dtype, device=device(), trust_remote_code=remote, how=how)
        return trunk, _folder(config, named) if named else None
    model, base = _base(config, reward, notify)
    dress(model, reward.links)
    model.requires_grad_(False)
    return model, base


def _base(config: RunConfig, reward: RewardFolder, notify: Notify) -> tuple[PreTrainedModel, Path]:
    """The model that an adapter was trained on: the configured one, else the one that it records."""
    recorded = base_of(reward.links)
    names = [config.model.model_name_or_path, recorded.base.name_or_path if recorded else reward.base_name_or_path]
    refusal: UserError | None = None
    for name in dict.fromkeys(filter(None, names)):
        try:
            folder = _folder(config, name)
            model = load_backbone(config, None if name == names[0] else name)
            notes = check_links(
                reward.links,
                fingerprint(model),
                key="judge",
                model=name,
                folder=folder,
                allow_mismatch=config.model.allow_mismatch,
            )
        except UserError as error:
            refusal = refusal or error
            continue
        for note in notes:
            notify(note)
        return model, folder
    raise refusal or UserError(
        f"judge: {reward.folder} is an adapter that does not say which model it belongs on; name that as "
        "model_name_or_path"
    )


def _tokenizer(config: RunConfig, *folders: Path | None) -> PreTrainedTokenizerBase:
    """That of the first folder which brings one."""
    options = {"use_fast": config.model.use_fast_tokenizer, "trust_remote_code": config.model.trust_remote_code}
    refusal: UserError | None = None
    for folder in filter(None, folders):
        try:
            return load_tokenizer(folder, **options)
        except UserError as error:
            refusal = refusal or error
    raise refusal or UserError("judge: there is no tokenizer to read answers with")


def _folder(config: RunConfig, name: str) -> Path:
    if name == config.model.model_name_or_path:
        revision = config.model.model_revision
        return Path(resolve_model(name, revision=revision, cache_dir=config.model.cache_dir))
    return Path(resolve_model(name, cache_dir=config.model.cache_dir))


@dataclass(frozen=True, kw_only=True)
class _Numbered(Batch):
    """A batch that remembers which rows it was made of."""

    number: torch.Tensor
