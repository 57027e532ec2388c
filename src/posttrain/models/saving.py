"""Permissions of saved files: as the user's umask says, as of any other file."""

from __future__ import annotations

import os
from pathlib import Path


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


def _umask() -> int:
    """The umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
