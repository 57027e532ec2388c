"""A model folder with the adapters named on top of it: what export and serving start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.data.template_names import resolve_chat_template
from posttrain.models.chains import Link, chain, check_links
from posttrain.models.fetch import resolve_model
from posttrain.models.lineage import Lineage, fingerprint, read_lineage
from posttrain.models.load import check_model_folder, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from; read, not loaded.

    Attributes:
        name: ``model_name_or_path`` as the user wrote it. folder: where that lies.
        lineage: of that folder, if recorded.
        links: the adapters on it, each with those it stands on, innermost first.
        tokenizer: of the outermost folder that brings one.
    """

    name: str
    folder: Path
    lineage: Lineage | None
    links: tuple[Link, ...]
    tokenizer: PreTrainedTokenizerBase

    @property
    def outermost(self) -> Path:
        """The folder that was trained last."""
        return self.links[-1].folder if self.links else self.folder

    @property
    def last_lineage(self) -> Lineage | None:
        """What is recorded beside what was trained last."""
        return self.links[-1].files.lineage if self.links else self.lineage

    def check(self, model: PreTrainedModel, *, allow_mismatch: bool, notify: Callable[[str], None]) -> str:
        """Refuse adapters that were trained on another backbone than ``model``; returns its fingerprint.

        Raises:
            UserError: as ``check_links``.
        """
        mark = fingerprint(model)
        key = "adapter_name_or_path"
        for note in check_links(
            self.links, mark, key=key, model=self.name, folder=self.folder, allow_mismatch=allow_mismatch
        ):
            notify(note)
        return mark


def find_source(config: RunConfig) -> Source:
    """What ``model_name_or_path``, ``adapter_name_or_path`` and ``template`` name.

    The tokenizer is that of the outermost adapter's folder, where training saved one with the chat template it used,
    else the base model's. Its chat template is its own; ``template`` serves a tokenizer that has none.

    Raises:
        UserError: a folder is missing or not what it should be.
    """
    model = config.model
    links = chain(model.adapter_name_or_path)
    folder = Path(resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir))
    check_model_folder(folder)
    options: dict[str, Any] = {"use_fast": model.use_fast_tokenizer, "trust_remote_code": model.trust_remote_code}
    place = links[-1].folder if links else folder
    brings = any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))
    tokenizer = load_tokenizer(place if brings else folder, **options)
    if not tokenizer.chat_template and brings and links:
        tokenizer.chat_template = load_tokenizer(folder, **options).chat_template
    data = config.data
    if data.template is not None or data.prompt_template is not None:
        tokenizer.chat_template = resolve_chat_template(tokenizer, data.template, data.prompt_template)
    return Source(
        name=model.model_name_or_path, folder=folder, lineage=read_lineage(folder), links=links, tokenizer=tokenizer
    )
