"""Saved files: permissions as the user's umask says, and the same bytes for the same tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def share(path: Path) -> None:
    """Give a file, or a folder with all in it, the mode that the umask leaves to new ones.

    safetensors and ``tempfile`` write for the owner alone, which keeps colleagues and services from a saved model.
    Windows has no such modes.
    """
    if os.name != "posix":
        return
    hidden = _umask()
    inside = path.rglob("*") if path.is_dir() else ()
    for place in (path, *inside):
        if not place.is_symlink():
            place.chmod((0o777 if place.is_dir() else 0o666) & ~hidden)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes are a function of its contents.

    safetensors keeps its metadata in a table of random order, so two entries stand now this way, now that.
    """
    save_file(dict(tensors), path, metadata=dict(metadata))
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise ValueError(f"{path}: the header takes {len(text)} bytes in order and {size} as it was written")
        file.seek(8)
        file.write(text)


def _umask() -> int:
    """The umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
