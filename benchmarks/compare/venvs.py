"""A virtual environment for each peer, made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from posttrain.config.home import cache_home

TORCH = "torch==2.13.0"
PACKAGES: dict[str, tuple[str, ...]] = {
    "trl": ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"),
    "llamafactory": (
        *("llamafactory==0.8.2", "trl==0.9.6", "transformers==4.41.2", "peft==0.11.1", "accelerate==0.31.0"),
        *("numpy<2", "datasets<3", "pyarrow==16.1.0"),
    ),
}
OWN = "posttrain"


def default_folder() -> Path:
    """Where environments and inputs are kept."""
    return cache_home() / "benchmarks"


def interpreter(name: str, folder: Path) -> Path:
    """The Python of an environment, which is made where it is not there; ours is the one that runs now.

    Raises:
        subprocess.CalledProcessError: a package could not be installed.
    """
    if name == OWN:
        return Path(sys.executable)
    place = folder / name
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    mark = place / "installed.txt"
    wanted = "\n".join((TORCH, *PACKAGES[name])) + "\n"
    if python.exists() and mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making {place}: {TORCH}, {', '.join(PACKAGES[name])} (minutes, once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    # torch first and by exact version, so that no other requirement can choose another build of it
    for packages in ((TORCH,), (TORCH, *PACKAGES[name])):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    mark.write_text(wanted, encoding="utf-8")
    return python
