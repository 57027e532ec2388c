"""Where things that were fetched or made once are kept for all runs of a user."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_home() -> Path:
    """The folder of fetched models and encoded datasets: ``POSTTRAIN_HOME``, else the platform's cache directory."""
    chosen = os.environ.get("POSTTRAIN_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "posttrain"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "posttrain"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "posttrain"
