"""Pairs of blocks in turn, A B A B, calibrated around every block; kept in a file that a later call goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.compare import ratios
from benchmarks.compare.calibration import drift
from benchmarks.compare.rows import Row, Side

ROOT = Path(__file__).resolve().parents[2]
ATTEMPTS = 2
"""Pairs that are tried for each one wanted, before the machine is called too restless."""


def measure(
    row: Row,
    spec: Mapping[str, Any],
    wanted: int,
    path: Path,
    block: Callable[[Side], dict[str, Any]],
    calibrate: Callable[[], dict[str, float]],
    *,
    code: str,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure until the file holds ``wanted`` pairs during which the machine stayed as it was.

    Pairs of the same spec, code and machine that the file holds already count; others are replaced.

    Args:
        row: what is compared.
        spec: that the blocks are given, without folders.
        wanted: pairs.
        path: of the stage's JSON file.
        block: runs a side.
        calibrate: how fast the machine is now.
        code: fingerprint of the code that is measured.
        say: receives sentences.

    Returns:
        The row as the file holds it.
    """
    about = {"says": row.says, "spec": dict(spec), "code": code, "machine": machine()}
    entry = _stored(path, row.name)
    if {name: entry.get(name) for name in about} != json.loads(json.dumps(about)):
        if entry.get("pairs"):
            say(f"{row.name}: {len(entry['pairs'])} stored pairs are of other code, settings or another machine")
        entry = {**about, "reach": {"speed": row.speed, "memory": row.memory}, "pairs": []}
    pairs: list[dict[str, Any]] = entry["pairs"]
    tried, last = 0, None
    while len(ratios.kept(pairs)) < wanted and tried < ATTEMPTS * wanted:
        before = last or calibrate()
        peer = block(row.peer)
        between = calibrate()
        ours = block(row.ours)
        last = calibrate()
        calibrations = [before, between, last]
        pair = {
            "peer": peer,
            "ours": ours,
            "calibrations": calibrations,
            "drift": drift(calibrations),
            "sampled": row.sampled,
            "commit": commit(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        pairs.append(pair)
        tried += 1
        entry["reach"] = {"speed": row.speed, "memory": row.memory}
        entry["summary"] = ratios.summary(pairs)
        _store(path, row, entry)
        say(_sentence(row, pair, len(ratios.kept(pairs)), wanted))
    return entry


def machine() -> dict[str, Any]:
    """The processor and what it offers; pairs of several machines are not mixed."""
    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}


def commit() -> str:
    """The commit that is checked out, with a mark where files differ from it; empty without git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def code_fingerprint() -> str:
    """A hash of the package and of the sides: what a measured pair depends on."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "posttrain", ROOT / "benchmarks" / "compare" / "sides"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _stored(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"].get(name, {})
    return found


def _store(path: Path, row: Row, entry: Mapping[str, Any]) -> None:
    """Put the row into the stage's file, whole or not at all."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"stage": row.stage, "rows": {}}
    content["rows"][row.name] = {"peer_name": row.peer_name, **entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    os.replace(partial, path)


def _sentence(row: Row, pair: Mapping[str, Any], count: int, wanted: int) -> str:
    clocks = {
        name: ratios.per_token(pair["peer"], clock) / ratios.per_token(pair["ours"], clock)
        for name, clock in (("wall", "seconds"), ("cpu", "cpu_seconds"))
    }
    memory = pair["ours"]["peak_rss_bytes"] / pair["peer"]["peak_rss_bytes"]
    moved = f"the machine moved by {100 * pair['drift']:.0f} %"
    counts = f"pair {count} of {wanted}" if pair["drift"] <= ratios.LARGEST_DRIFT else "pair discarded"
    speeds = f"wall {clocks['wall']:.2f}x, cpu {clocks['cpu']:.2f}x, memory {memory:.2f}x"
    return f"{row.stage} {row.name}: {counts}: {speeds} ({moved})"
