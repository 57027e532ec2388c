"""Datasets of a hub -> rows, through the library of that hub."""

from __future__ import annotations

import importlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from posttrain.data.columnar import plain_row
from posttrain.data.files import Row
from posttrain.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
"""``owner/name``, and behind a colon the subset."""
_PROBE_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A dataset on a hub.

    Attributes:
        repo: owner/name. subset: configuration of the dataset; folder: within its repository.
        modelscope: it lies on ModelScope, not on Hugging Face.
    """

    repo: str
    subset: str | None = None
    folder: str | None = None
    modelscope: bool = False

    @property
    def label(self) -> str:
        """As a message names it."""
        return self.repo + (f", subset {self.subset}" if self.subset else "")


def rows_of_hub(source: HubSource, split: str, *, streaming: bool = False) -> Iterator[Row]:
    """The rows of one split.

    Args:
        source: which dataset. split: as the hub's library reads it, slices such as ``train[:100]`` included.
        streaming: download rows as they are asked for.

    Raises:
        UserError: no library, no such dataset, subset or split, or no answer.
    """
    dataset = hub_dataset(source, split, streaming=streaming)
    with _explained(source, split):
        for number, row in enumerate(dataset, start=1):
            yield f"{source.label}, {split} row {number}", plain_row(row)


def hub_dataset(source: HubSource, split: str, *, streaming: bool = False) -> Any:
    """The dataset as its library gives it.

    Raises:
        UserError: as ``rows_of_hub``.
    """
    with _explained(source, split):
        if source.modelscope:
            library = _library(source, "modelscope", "pip install modelscope")
            found = library.MsDataset.load(
                dataset_name=source.repo,
                subset_name=source.subset,
                data_dir=source.folder,
                split=split,
                use_streaming=streaming,
            )
            return found.to_hf_dataset() if hasattr(found, "to_hf_dataset") else found
        library = _library(source, "datasets", 'pip install "posttrain[data]"')
        with _without_waiting(source.repo):
            return library.load_dataset(
                source.repo, name=source.subset, data_dir=source.folder, split=split, streaming=streaming
            )


def _library(source: HubSource, name: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(
            f"dataset {source.label}: no file or folder of that name, and to read it from its hub the {name} library "
            f"is needed: {command}"
        ) from None


@contextmanager
def _explained(source: HubSource, split: str) -> Iterator[None]:
    """Raises UserError: whatever the library did not find or get; which errors it raises depends on its version."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        hub = "ModelScope" if source.modelscope else "the Hugging Face hub"
        if "BuilderConfig" in said or "Config name" in said:
            raise UserError(
                f"dataset {source.label}: {said} Name a subset as `{source.repo}:SUBSET`, or as `subset` in "
                "dataset_info.json."
            ) from error
        if "split" in said.lower():
            raise UserError(f"dataset {source.label}: split: {split}: {said}") from error
        raise UserError(
            f"dataset {source.label}: no file or folder of that name, and {hub} does not give it "
            f"({type(error).__name__}: {said}). Check the name and the network (HF_ENDPOINT for a mirror, HF_TOKEN for "
            "a private one), or download its files and give their folder."
        ) from error


@contextmanager
def _without_waiting(repo: str) -> Iterator[None]:
    """Where the hub does not answer, its library looks into its cache at once instead of asking for half a minute."""
    modules = [importlib.import_module(name) for name in ("datasets.config", "huggingface_hub.constants")]
    before = [getattr(module, "HF_HUB_OFFLINE", False) for module in modules]
    offline = before[0] or not _answers(repo)
    try:
        for module in modules if offline else ():
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = was  # type: ignore[attr-defined]


def _answers(repo: str) -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/datasets/{repo}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # a private or missing dataset is for the library to say
    except OSError:
        return False
