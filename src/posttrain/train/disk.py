"""Bytes that are really on the disk, values that are really JSON, and errors that mean the disk would not take them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def is_failed_write(error: Exception) -> bool:
    """Whether an error came from writing: of the system, of safetensors, or the bare one that tokenizers raises."""
    if isinstance(error, OSError | SafetensorError):
        return True
    return type(error) is Exception and any(words in str(error) for words in ("os error", "No space left"))


def reason(error: Exception) -> str:
    """What went wrong, without the number and the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def plain(value: Any) -> Any:
    """The value in JSON's own types: tensors and numpy scalars as numbers, NaN and inf as None, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, bool, type(None))) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_tree(folder: Path) -> None:
    """Ask the disk for every byte below ``folder``: a rename must not overtake the data."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            flush_file(path)
        else:
            flush_folder(path)
    flush_folder(folder)


def flush_file(path: Path) -> None:
    """Ask the disk for the bytes of a file; what is not there is no error."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Ask the disk for the names in ``folder``."""
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
