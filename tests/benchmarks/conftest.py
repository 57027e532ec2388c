"""Sides that do nothing but say what they were told to: the orchestrator is tested without a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `benchmarks` is no part of the package

from benchmarks.compare.rows import Row, Side  # noqa: E402

SIDE = """
import json, os, sys
from pathlib import Path
spec = json.loads(Path(sys.argv[1]).read_text())
with open(spec["journal"], "a") as file:
    file.write(json.dumps([spec["variant"], os.environ["POSTTRAIN_HOME"]]) + "\\n")
result = dict(spec["answers"][spec["variant"]])
if result.get("fails"):
    sys.exit("out of luck")
Path(sys.argv[2]).write_text(json.dumps(result))
"""


@pytest.fixture
def answer():
    """RESULT.json of a block of 100 live tokens."""

    def make(seconds, **more):
        found = {
            **{"seconds": seconds, "cpu_seconds": 2 * seconds, "live_tokens": 100, "generated_tokens": None},
            **{"samples": 4, "peak_rss_bytes": 1_000_000_000, "first_loss": 1.5, "first_grad_norm": 0.5},
            **{"versions": {}, "notes": []},
        }
        return {**found, **more}

    return make


@pytest.fixture
def row():
    """A comparison of nobody with us."""

    def make(name="tuned", *, stage="sft", keeps_cache=False, **more):
        peer = Side("fake.py", "tuned", "posttrain")
        return Row(
            stage, "trl", name, "as fast as it gets", peer, Side("fake.py", "ours", "posttrain", keeps_cache), **more
        )

    return make


@pytest.fixture
def scripts(tmp_path):
    """A folder with a side that answers what SPEC.json says, and writes down that it was asked."""
    folder = tmp_path / "sides"
    folder.mkdir()
    (folder / "fake.py").write_text(SIDE, encoding="utf-8")
    return folder


@pytest.fixture
def journal(tmp_path):
    """(variant, POSTTRAIN_HOME) of every block so far."""
    path = tmp_path / "journal"

    def read():
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    read.path = path
    return read
