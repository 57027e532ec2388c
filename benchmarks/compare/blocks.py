"""One block: a side in a process of its own, from SPEC.json to RESULT.json."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare.rows import Side

SIDES = Path(__file__).resolve().parent / "sides"
NEEDED = ("seconds", "cpu_seconds", "live_tokens", "peak_rss_bytes", "first_loss", "first_grad_norm")
_LAST = 3000


class BlockError(Exception):
    """A side that failed, or whose result cannot be used."""


def environment(threads: int) -> dict[str, str]:
    """What both sides find: equal threads, no network, nothing of ours in the path but for ourselves."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSTARTUP")}
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    return {**kept, **dict.fromkeys(names, str(threads)), **offline, "TOKENIZERS_PARALLELISM": "false"}


class Blocks:
    """Runs the blocks of one row.

    Args:
        spec: SPEC.json without ``variant`` and ``work``.
        interpreters: environment -> its Python.
        folder: where caches that outlive a block are kept.
        scripts: where the sides lie.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        interpreters: Callable[[str], Path],
        folder: Path,
        *,
        scripts: Path = SIDES,
    ) -> None:
        self._spec, self._interpreters, self._folder, self._scripts = spec, interpreters, folder, scripts
        self._filled: set[Side] = set()

    def __call__(self, side: Side) -> dict[str, Any]:
        """Run a side and read its result.

        Raises:
            BlockError: it failed.
        """
        if not side.keeps_cache:
            with tempfile.TemporaryDirectory(prefix="posttrain-home-") as home:
                return self._run(side, Path(home))
        home = self._folder / f"home-{side.variant}"
        if side not in self._filled:
            self._run(side, home)
            self._filled.add(side)
        return self._run(side, home)

    def _run(self, side: Side, home: Path) -> dict[str, Any]:
        python = self._interpreters(side.environment)
        with tempfile.TemporaryDirectory(prefix="posttrain-block-") as temporary:
            folder = Path(temporary)
            (folder / "work").mkdir()
            spec = {**self._spec, "variant": side.variant, "work": str(folder / "work")}
            files = (folder / "spec.json", folder / "result.json")
            files[0].write_text(json.dumps(spec), encoding="utf-8")
            variables = environment(int(spec["threads"])) | {"POSTTRAIN_HOME": str(home)}
            command = [str(python), str(self._scripts / side.script), *map(str, files)]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, errors="replace")
            if done.returncode or not files[1].is_file():
                said = (done.stderr or done.stdout)[-_LAST:]
                raise BlockError(f"{side.script} ({side.variant}) ended with status {done.returncode}:\n{said}")
            result: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
        missing = [name for name in NEEDED if name not in result]
        if missing or not result["live_tokens"] or not result["seconds"] > 0:
            raise BlockError(f"{side.script} ({side.variant}) measured nothing: {missing or result}")
        return result
