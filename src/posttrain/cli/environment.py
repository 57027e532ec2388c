"""``posttrain env`` and ``posttrain version``: what runs here, for a report of a problem."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata

import posttrain

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "huggingface-hub", "tokenizers", "accelerate")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    commands.add_parser("env", help="Versions of posttrain and its libraries, and the device.").set_defaults(
        run=print_environment
    )
    commands.add_parser("version", help="The version of posttrain.").set_defaults(run=print_version)


def print_version(args: argparse.Namespace) -> int:
    """One line, the same as ``--version``."""
    print(f"posttrain {posttrain.__version__}")
    return 0


def print_environment(args: argparse.Namespace) -> int:
    """One ``name: value`` line for each thing that decides how a run behaves."""
    import torch

    rows = {"posttrain": posttrain.__version__, "python": platform.python_version(), "platform": platform.platform()}
    rows |= {name: _version(name) for name in LIBRARIES}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        rows["device"] = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB), {torch.cuda.device_count()} in all"
        rows["cuda"] = str(torch.version.cuda)
    else:
        rows["device"] = f"cpu ({platform.processor() or platform.machine()})"
    rows["cores"] = str(os.cpu_count())
    rows["threads"] = str(torch.get_num_threads())
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
