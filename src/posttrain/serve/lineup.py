"""The models of one chat: adapters on a backbone that is loaded once, and whole models beside it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.config import GenerationConfig, RunConfig
from posttrain.errors import UserError
from posttrain.models.chains import check_links
from posttrain.models.variants import variant_folders
from posttrain.serve.model import ChatModel, FinishReason, Outfit

BASE = "base"


class Lineup:
    """Models by name, of which ``variants`` names those that are there from the start.

    Without ``variants`` there is the one of the configuration, called like the folder of its outermost adapter, and,
    where it wears one, ``base``, what that stands on. Adapters that are asked for later are put on the same backbone,
    which is loaded anew for that; a folder that holds a whole model is loaded beside it.

    Attributes:
        names: of all models, the first the one to begin with.
    """

    def __init__(self, config: RunConfig, *, notify: Callable[[str], None] = lambda sentence: None) -> None:
        """Load what the configuration names.

        Raises:
            UserError: as ``ChatModel``.
        """
        self._config, self._notify = config, notify
        self._beside: dict[str, ChatModel] = {}
        if config.evaluate.variants:
            self._folders = variant_folders(config)
            self._model: ChatModel | None = ChatModel(config, variants=self._folders, notify=notify)
            self._held = dict.fromkeys(self._folders)
        else:
            worn = config.model.adapter_name_or_path
            own = _name(worn[-1] if worn else config.model.model_name_or_path)
            self._folders = {own: worn, **({BASE: ()} if worn else {})}
            self._model = ChatModel(config, notify=notify)
            self._held = {own: None}
        self._mark = self._model.mark

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models."""
        return (*self._folders, *self._beside)

    def named(self, place: str) -> str:
        """The name of a model that is there, or of one in the folder ``place``; it is ready to answer then.

        Raises:
            UserError: there is neither; or it is an adapter of another backbone, or no language model.
        """
        name = place if place in self.names else self._added(place)
        if name in self._folders:
            self._backbone(name)
        return name

    def settings(self, generation: Mapping[str, Any]) -> GenerationConfig:
        """The configured way of drawing with some changes.

        Raises:
            UserError: as ``ChatModel.settings``.
        """
        return self._backbone().settings(generation)

    def stream_chat(
        self, name: str, messages: Sequence[Mapping[str, str]], system: str | None, generation: Mapping[str, Any]
    ) -> Generator[str, None, FinishReason]:
        """The answer of one model in pieces, and why it ended; see ``ChatModel.stream_chat``."""
        if name in self._beside:
            model = self._beside[name]
        else:
            model = self._backbone(name)
            if len(self._held) > 1:
                model.wear(name)
        return (yield from model.stream_chat(messages, system, **generation))

    def _backbone(self, name: str | None = None) -> ChatModel:
        """The backbone, loaded anew where it does not hold the adapters of ``name``."""
        if self._model is None or (name is not None and name not in self._held):
            if self._model is not None:
                self._notify(f"loading {self._config.model.model_name_or_path} anew, with all adapters of this chat")
            self._model = None  # two of them may not fit into memory
            self._model = ChatModel(replace(self._config, warnings=()), variants=self._folders, notify=self._notify)
            self._held = dict.fromkeys(self._folders)
        return self._model

    def _added(self, place: str) -> str:
        folder = Path(place).expanduser()
        if not folder.is_dir():
            near = difflib.get_close_matches(place, self.names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names)}."
            raise UserError(f"no model and no folder is called {place!r}; {hint}")
        name = self._free_name(folder)
        if not (folder / "adapter_config.json").is_file():
            model = replace(self._config.model, model_name_or_path=str(folder), adapter_name_or_path=())
            self._beside[name] = ChatModel(replace(self._config, model=model, warnings=()), notify=self._notify)
            return name
        config = self._config.model
        outfit = Outfit.configured(self._config, [str(folder)])
        check_links(
            outfit.source.links,
            self._mark,
            key="/model",
            model=outfit.source.name,
            folder=outfit.source.folder,
            allow_mismatch=config.allow_mismatch,
        )
        self._folders = {**self._folders, name: (str(folder),)}
        return name

    def _free_name(self, folder: Path) -> str:
        name, number = _name(folder), 2
        while name in self.names:
            name, number = f"{_name(folder)}-{number}", number + 1
        return name


def _name(place: str | Path) -> str:
    """The last part of a path, in which no space stands."""
    return "-".join(Path(place).expanduser().resolve().name.split()) or BASE
