"""Encoded datasets that are kept: by the hash of all that they depend on, or in a folder that the user names."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from posttrain.config.home import cache_home
from posttrain.data.encode import Report
from posttrain.data.sources import data_files, resolve_dataset
from posttrain.data.splits import Splits
from posttrain.data.stored import load_rows, save_rows
from posttrain.data.template import Template
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import DataConfig

FILE = "encoded.safetensors"
SMALLEST = 1_000_000
"""Bytes of data files below which encoding is over before a cache would pay."""
_DAYS_KEPT = 30
# How rows are made, not what they become.
_WITHOUT_EFFECT = (
    *("overwrite_cache", "preprocessing_num_workers", "preprocessing_batch_size", "tokenized_path"),
    *("group_by_length", "dataset", "eval_dataset", "dataset_dir"),
)
_PROBE = "Ab 12 老师 ééé \n\t<|end|> x"


def kept_splits(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    settings: Mapping[str, Any],
    make: Callable[[], Splits],
) -> Splits:
    """What ``make`` gives, from the disk where the same was made before; several processes make it once.

    Args:
        data: names the datasets. tokenizer: renders them. template: how; None for documents.
        settings: what else decides about the rows: stage, seed ...
        make: reads and encodes.

    Raises:
        UserError: of ``make``; a ``tokenized_path`` that cannot be read or written, or holds rows for something else.
    """
    began = time.time_ns()
    identity = {
        **settings,
        "tokenizer": fingerprint(tokenizer),
        "template": template and [template.fingerprint, *template.closing],
    }
    if data.tokenized_path:
        path = Path(data.tokenized_path).expanduser() / FILE
        return _at_path(path, {**identity, **_choices(data)}, template, make)
    sources = _sources(data)
    if sources is None:
        return make()
    key = _digest([identity, _choices(data), sources, code_fingerprint()])
    path = cache_home() / "datasets" / f"{key}.safetensors"
    made: Splits | None = None
    try:
        with _locked(path):
            found = _read(path, template, newer_than=began if data.overwrite_cache else 0)
            if found is not None:
                again = "overwrite_cache: true encodes them anew"
                return _with_note(found, f"encoded rows are those that were kept in {path}; {again}")
            made = make()
            _write(path, made, {"created": time.time_ns()})
            forget_old(path.parent)
            return made
    except _NoPlaceError as error:
        return _with_note(made or make(), f"encoded rows are not kept for the next run: {error}")


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when a text may become other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        type(tokenizer).__name__,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        sorted((i, str(token), token.special) for i, token in tokenizer.added_tokens_decoder.items()),
        [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        list(tokenizer(_PROBE)["input_ids"]),
        list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"]),
    ]
    return _digest(parts)


def code_fingerprint() -> str:
    """Changes with every change of how rows are read and encoded: a hash of this room's own source."""
    digest = hashlib.sha256()
    for file in sorted(resources.files("posttrain.data").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


class _NoPlaceError(Exception):
    """The cache cannot be used on this machine; the run goes on without."""


def _choices(data: DataConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(data).items() if name not in _WITHOUT_EFFECT}


def _sources(data: DataConfig) -> list[Any] | None:
    """Every data file with its content and its layout; None where caching would not pay, or of a hub."""
    found: list[tuple[Any, ...]] = []
    size = 0
    listed = [(key, name) for key in ("dataset", "eval_dataset") for name in getattr(data, key)]
    for key, name in listed:
        spec = resolve_dataset(name, data.dataset_dir)
        if spec.path is None:
            return None
        files = data_files(spec.path, f"dataset {name!r}", spec.split or data.split)
        if not all(os.access(file, os.R_OK) for file in files):
            return None  # whoever reads it says so
        size += sum(file.stat().st_size for file in files)
        found.append((key, repr(spec.layout), spec.num_samples, files))
    if size < SMALLEST:
        return None
    return [(*rest, [(str(file), _hash_of(file)) for file in files]) for *rest, files in found]


def _hash_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with a file of the cache, others wait; a process that dies leaves no lock behind."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, RuntimeError) as error:  # of a disk that knows no locks
        raise _NoPlaceError(f"{path.parent} cannot be written ({error}); POSTTRAIN_HOME names another") from error
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, template: Template | None, *, newer_than: int) -> Splits | None:
    """None where there is nothing, nothing readable, or nothing new enough."""
    try:
        rows, metadata = load_rows(path)
        if metadata["created"] < newer_than:
            return None
        found = _splits(rows, metadata, template)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):
        os.utime(path)
    return found


def _write(path: Path, splits: Splits, metadata: Mapping[str, Any]) -> None:
    reports = {
        "report": vars(splits.report),
        "validation_report": splits.validation_report and vars(splits.validation_report),
    }
    try:
        save_rows(path, {"train": splits.train, "validation": splits.validation}, {**metadata, **reports})
    except (OSError, TypeError) as error:
        raise _NoPlaceError(f"{path.parent}: {error}") from error


def _splits(rows: Mapping[str, Any], metadata: Mapping[str, Any], template: Template | None) -> Splits:
    validation = metadata["validation_report"]
    return Splits(
        train=rows["train"],
        validation=rows["validation"],
        report=_report(metadata["report"]),
        validation_report=None if validation is None else _report(validation),
        template=template,
    )


def _report(values: Mapping[str, Any]) -> Report:
    return Report(**{**values, "dropped": Counter(values["dropped"])})


def _with_note(splits: Splits, note: str) -> Splits:
    return replace(splits, notes=(*splits.notes, note))


def forget_old(folder: Path) -> None:
    """Remove what no run has used for a month."""
    for file in folder.glob("*.safetensors"):
        with suppress(OSError):  # another process was faster, or has it open
            if time.time() - file.stat().st_mtime > _DAYS_KEPT * 86400:
                file.unlink()
                file.with_suffix(".lock").unlink(missing_ok=True)


def _at_path(path: Path, identity: Mapping[str, Any], template: Template | None, make: Callable[[], Splits]) -> Splits:
    """Rows that were encoded into ``tokenized_path``, or are now.

    Raises:
        UserError: the folder is of another program, or its rows are for another stage, tokenizer or template.
    """
    if (path.parent / "dataset_dict.json").exists() and not path.exists():
        raise UserError(
            f"tokenized_path: {path.parent} was written by LLaMA-Factory or `datasets`, whose tokenised rows are not "
            "read here; name another folder, and `dataset` is encoded into it"
        )
    try:
        with _locked(path):
            if path.exists():
                return _given(path, identity, template)
            found = make()
            _write(path, found, {"identity": dict(identity)})
    except _NoPlaceError as error:
        raise UserError(f"tokenized_path: {error}") from error
    return _with_note(found, f"encoded rows are kept in {path.parent} and taken from there from now on")


def _given(path: Path, identity: Mapping[str, Any], template: Template | None) -> Splits:
    again = "remove the folder, or name another, to encode `dataset` anew"
    try:
        rows, metadata = load_rows(path)
        then = metadata["identity"]
        found = _splits(rows, metadata, template)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"tokenized_path: {path} cannot be read ({error}); {again}") from error
    now = json.loads(json.dumps(dict(identity), default=str))
    for name in ("stage", "tokenizer", "template"):
        if then.get(name) != now.get(name):
            values = f" ({then.get(name)}, now {now.get(name)})" if name == "stage" else ""
            raise UserError(f"tokenized_path: {path.parent} holds rows for another {name}{values}; {again}")
    changed = [f"{name} {then.get(name)} (now {value})" for name, value in now.items() if then.get(name) != value]
    note = f"encoded rows are those in {path.parent}, whatever `dataset` holds now"
    return _with_note(found, f"{note}; they were made with {', '.join(changed)}" if changed else note)
