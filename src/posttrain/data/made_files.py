"""Files of data that is made here: the same bytes for the same seed, and their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from posttrain.errors import UserError


def make_folder(folder: Path) -> None:
    """Make a folder and what it lies in.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {error.strerror or error}. Choose another directory") from error


def json_text(value: Any) -> str:
    """JSON as people read it, ending in a line break."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_text(path: Path, text: str) -> str:
    """Write a file, with the same line breaks on every system.

    Returns:
        The SHA-256 of its bytes.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
