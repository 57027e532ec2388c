"""What a stage reads from outside its pipeline, known by size and time, so that a change there is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from posttrain.config import PipelineStage
from posttrain.config.run import KEYS
from posttrain.data.sources import resolve_dataset
from posttrain.errors import UserError
from posttrain.pipeline.state import texts

_DATASETS = ("dataset", "eval_dataset")
# Paths that are written, or that hold more than the stage reads.
_NOT_READ = (
    "output_dir",
    "export_dir",
    "output_file",
    "cache_dir",
    "dataset_dir",
    "resume_from_checkpoint",
    "tokenized_path",
)
_MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    *("value_head.safetensors", "value_head.bin", "lineage.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)


def outside_inputs(stage: PipelineStage, inside: Iterable[str]) -> dict[str, Any]:
    """Data files with their entries of ``dataset_info.json``, and model and adapter folders, as they are now.

    Args:
        stage: resolved.
        inside: folders that the pipeline itself writes; what lies there is known otherwise.

    Returns:
        Name or path -> sizes and times of the files. What is not there is left out: the stage itself will say so.
    """
    folders = [Path(folder).expanduser().resolve() for folder in inside]
    found: dict[str, Any] = {}
    for name in (text for key in _DATASETS for text in texts(stage.values.get(key))):
        try:
            spec = resolve_dataset(name, str(stage.values.get("dataset_dir") or KEYS["dataset_dir"].default))
        except (UserError, OSError):
            continue
        if spec.path is None:
            found[f"dataset {name}"] = [repr(spec.layout), spec.num_samples, spec.split, repr(spec.hub)]
        elif not _is_in(spec.path, folders):
            found[f"dataset {name}"] = [repr(spec.layout), spec.num_samples, spec.split, _seen(spec.path)]
    for text in _named_paths(stage):
        path = Path(text).expanduser()
        if not _is_in(path, folders) and path.exists():
            found[text] = _seen(path)
    return found


def _named_paths(stage: PipelineStage) -> Iterator[str]:
    for key, value in stage.values.items():
        if key in KEYS and KEYS[key].limits.get("path") and key not in (*_DATASETS, *_NOT_READ):
            yield from texts(value)


def _is_in(path: Path, folders: Iterable[Path]) -> bool:
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder) for folder in folders)


def _seen(path: Path) -> list[tuple[str, int, int]]:
    """(name, size, time of the last change) of a file, of the files that make a folder a model, or of all in it."""
    files = [path]
    if path.is_dir():
        files = [path / name for name in _MODEL_FILES if (path / name).is_file()]
        files = files or sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
