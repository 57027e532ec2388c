"""What a server serves: one backbone under the names of its adapters, and a reward model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.backbone import load_backbone
from posttrain.models.forward import prepare_trunk
from posttrain.models.merging import dress
from posttrain.models.variants import put_on_all, variant_folders
from posttrain.serve.model import Outfit
from posttrain.serve.scoring import FolderScorer

_MOST_POSITIONS = 4096
"""Longest sequence of a model that does not say how many positions it has."""

Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Voice:
    """One of the names that answers are asked of.

    Attributes:
        name: in requests.
        template: renders its chats; with its tokenizer.
        wears: adapters that are active when it answers, where they are not in the weights.
        skips_special: whether special tokens are left out of texts.
    """

    name: str
    template: Template
    wears: tuple[str, ...] = ()
    skips_special: bool = True

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text."""
        return str(self.template.tokenizer.decode(list(ids), skip_special_tokens=self.skips_special))

    def tokens(self, text: str) -> list[int]:
        """A text's tokens as a beginning to go on from: what the tokenizer puts before it stays, what behind goes."""
        tokenizer = self.template.tokenizer
        bare = self.template.tokens(text)
        ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                return ids[: start + len(bare)]
        return bare


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """Everything that requests can ask.

    Attributes:
        model: the backbone of all voices, None where only scores are served.
        voices: name -> voice; the first is asked where a request names none.
        context: tokens that a prompt and its completion may have together.
        scorer: the reward model, None without one. scorer_name: its name in requests.
    """

    model: Any
    voices: Mapping[str, Voice]
    context: int
    scorer: FolderScorer | None = None
    scorer_name: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request can ask for."""
        return (*self.voices, *([self.scorer_name] if self.scorer else []))


def load_served(config: RunConfig, *, notify: Notify, environment: Mapping[str, str] | None = None) -> Served:
    """Load what a configuration wants served.

    With ``stage: rm`` that is the reward model alone: the last of ``adapter_name_or_path``, else the model's folder.
    Otherwise it is the language model with its adapters, or each of ``variants``, and ``reward_model`` beside it.

    Raises:
        UserError: bad folders, two things of one name, a model that the decoder cannot run.
    """
    if config.method.stage == "rm":
        folder = [config.model.model_name_or_path, *config.model.adapter_name_or_path][-1]
        scorer = FolderScorer.configured(config, folder, notify=notify)
        return Served(
            model=None, voices={}, context=0, scorer=scorer, scorer_name=_own_name(config, folder, environment)
        )
    reward = config.reward.reward_model
    if reward and reward.startswith(("http://", "https://")):
        raise UserError("reward_model: a server cannot be served again; give the folder of a reward model")
    outfits = _outfits(config, environment)
    scorer_name = Path(reward).name if reward else ""
    if scorer_name in outfits:
        raise UserError(f"reward_model: its folder is called {scorer_name}, as one of the models is; rename one")
    model = load_backbone(config)
    voices = _voices(config, model, outfits, notify)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said below, in other words
        if not prepare_trunk(model):
            raise UserError(
                f"{type(model).__name__} cannot be served: it does not run packed, as the slot decoder needs it to; "
                "use `posttrain chat` or `posttrain generate`"
            )
    return Served(
        model=model.eval(),
        voices=voices,
        context=_context(config, model),
        scorer=FolderScorer.configured(config, reward, notify=notify) if reward else None,
        scorer_name=scorer_name,
    )


def _outfits(config: RunConfig, environment: Mapping[str, str] | None) -> dict[str, Outfit]:
    """Name -> what that model wears."""
    if config.evaluate.variants:
        return {name: Outfit.configured(config, adapters) for name, adapters in variant_folders(config).items()}
    outfit = Outfit.configured(config, config.model.adapter_name_or_path)
    outermost = outfit.source.outermost if outfit.source.links else config.model.model_name_or_path
    return {_own_name(config, str(outermost), environment): outfit}


def _own_name(config: RunConfig, folder: str, environment: Mapping[str, str] | None) -> str:
    given = os.environ if environment is None else environment
    return config.serve.api_model_name or given.get("API_MODEL_NAME") or Path(folder).name or folder


def _voices(config: RunConfig, model: Any, outfits: Mapping[str, Outfit], notify: Notify) -> dict[str, Voice]:
    """Put the adapters on, each once; those of a single model go into the weights."""
    for outfit in outfits.values():
        outfit.source.check(model, allow_mismatch=config.model.allow_mismatch, notify=notify)
        for note in outfit.notes:
            notify(note)
    chains = {name: outfit.source.links for name, outfit in outfits.items()}
    worn: dict[str, str] = {}
    if len(chains) == 1:
        dress(model, *chains.values())
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft's, that there are several adapters, which is meant
            worn = put_on_all(model, list(chains.values()))
    return {
        name: Voice(
            name=name,
            template=outfit.template,
            wears=tuple(put for link in chains[name] if (put := worn.get(link.fingerprint))),
            skips_special=config.generation.skip_special_tokens,
        )
        for name, outfit in outfits.items()
    }


def _context(config: RunConfig, model: Any) -> int:
    """Tokens of prompt and completion together.

    Raises:
        UserError: ``max_model_len`` is more than the model has positions for.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = config.serve.max_model_len
    if wanted is None:
        return int(positions or _MOST_POSITIONS)
    if positions and wanted > positions:
        raise UserError(f"max_model_len is {wanted}, but {type(model).__name__} has {positions} positions")
    return wanted
