"""Whether two run directories hold the same run: the same files with the same bytes, clocks apart."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.train.clocks import timeless

# All that may hold a reading of a clock; every other file must be equal byte for byte.
WITH_CLOCKS = (
    "trainer_log.jsonl",
    "train_results.json",
    "eval_results.json",
    "all_results.json",
    "monitor.json",
    "clock.json",
    "lineage.json",
)
# TensorBoard writes the time of day into every record and the name of every file.
_LEFT_OUT = "runs"


@dataclass
class Comparison:
    """Names of files, relative to the run directory.

    Attributes:
        equal: same bytes. timeless: same but for clocks. different: not the same; why in brackets.
    """

    equal: list[str] = field(default_factory=list)
    timeless: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def compare(one: Path, other: Path) -> Comparison:
    """Compare every file of two run directories."""
    result = Comparison()
    first, second = _files(one), _files(other)
    for name in sorted(first | second):
        if name not in second or name not in first:
            result.different.append(f"{name} (only in {one if name in first else other})")
        elif (one / name).read_bytes() == (other / name).read_bytes():
            result.equal.append(name)
        elif (content := _content(one / name)) is not None and content == _content(other / name):
            result.timeless.append(name)
        else:
            result.different.append(f"{name} (contents)")
    return result


def _files(folder: Path) -> set[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix() for name in names if name.parts[0] != _LEFT_OUT}


def _content(path: Path) -> Any:
    """What must be equal in a file that may differ in bytes; None where bytes must be equal."""
    text = path.read_text(encoding="utf-8") if path.name in (*WITH_CLOCKS, "config.yaml") else ""
    if path.name == "config.yaml":
        return {name: value for name, value in yaml.safe_load(text).items() if name != "resume_from_checkpoint"}
    if path.name not in WITH_CLOCKS:
        return None
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in text.splitlines()]
    return timeless(json.loads(text))
