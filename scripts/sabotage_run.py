"""Tests against a private copy of the package: a fork of what has imported torch already, else a process of its own."""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sabotage_mutants import PACKAGE, ROOT, Mutant

FORKS = hasattr(os, "fork")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run of tests.

    Attributes:
        kind: "passed"; "failed" by ``test``; "timeout"; "broken": the tests could not be run at all.
        test: the first one that failed. seconds: how long it took. output: what pytest printed.
    """

    kind: str
    seconds: float
    test: str = ""
    output: str = ""


def preload() -> None:
    """Import once what every child needs, all but the package itself."""
    import hypothesis  # noqa: F401
    import peft.functional  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # an optimizer's first step does
    import transformers

    families = ("Gemma2", "Gemma3", "Llama", "Mistral", "Qwen2", "Qwen3")
    for name in ("GPT2LMHeadModel", *(f"{family}ForCausalLM" for family in families)):
        assert getattr(transformers, name)  # transformers imports a model where it is first asked for
    torch.set_num_threads(1)
    assert "posttrain" not in sys.modules


def snapshot(place: Path) -> Path:
    """The package as it is now, compiled, in ``place``: what all runs are made from."""
    package = place / "posttrain"
    shutil.copytree(PACKAGE, package)
    compileall.compile_dir(package, quiet=2)
    return package


@contextmanager
def private_copy(package: Path, place: Path, mutant: Mutant | None) -> Iterator[Path]:
    """A folder with a copy of ``package``, the mistake in it; removed afterwards."""
    shutil.copytree(package, place / "posttrain")
    if mutant is not None:
        file = place / "posttrain" / mutant.file
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        file.write_text(mutant.source(package), encoding="utf-8")
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass(eq=False)
class _Record:
    """A pytest plugin that remembers the first failure."""

    failed: str = ""
    ran: int = 0
    uncollected: list[str] = field(default_factory=list)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.uncollected.append(report.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ran += report.when == "call" and not report.skipped
        if report.failed and not self.failed:
            self.failed = report.nodeid


class Run:
    """Tests running against a copy of the package."""

    def __init__(self, place: Path, targets: Sequence[str], *, limit: float) -> None:
        """Start them.

        Args:
            place: the folder that holds the copy.
            targets: test files or functions.
            limit: seconds after which the run is stopped.
        """
        self._place, self._limit = place, limit
        self._began = time.monotonic()
        arguments = [str(place), *targets]
        if not FORKS:
            command = [sys.executable, str(Path(__file__).resolve()), *arguments]
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(command, cwd=ROOT)
            return
        self._process = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _end_with(arguments)
        with suppress(OSError):  # the child does it too: whoever comes first
            os.setpgid(self._pid, self._pid)

    def outcome(self) -> Outcome | None:
        """What became of it; None while it runs."""
        late = time.monotonic() - self._began > self._limit
        if late:
            self.stop()
        elif self._is_running():
            return None
        seconds = time.monotonic() - self._began
        log = self._place / "output.txt"
        output = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if late:
            return Outcome(kind="timeout", seconds=seconds, output=output)
        report = self._place / "report.json"
        found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {"kind": "broken", "test": ""}
        return Outcome(seconds=seconds, output=output, **found)

    def stop(self) -> None:
        """End it, and the processes it started."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            return
        with suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def _is_running(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return os.waitpid(self._pid, os.WNOHANG)[0] == 0


def _end_with(arguments: Sequence[str]) -> NoReturn:
    """In a fork: the tests, then the end, whatever happens; nothing may return into what the parent was doing."""
    status = 1
    try:
        status = _child(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _child(arguments: Sequence[str]) -> int:
    """In the child: run the tests against the copy, write down what happened, return 0."""
    place, targets = Path(arguments[0]), list(arguments[1:])
    try:
        if FORKS:
            with suppress(OSError):
                os.setpgid(0, 0)
        handle = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(ROOT)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH"))))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(place))
        found = _tested(place, targets)
        (place / "report.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _tested(place: Path, targets: Sequence[str]) -> dict[str, str]:
    import pytest
    from hypothesis import Phase, settings

    # A mistake has to be found, not explained: nothing is shrunk, and what is drawn is the same every time.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("sabotage", max_examples=25, derandomize=True, deadline=None, phases=phases)
    settings.load_profile("sabotage")
    record = _Record()
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--basetemp", str(place / "tmp"), "--rootdir", "."]
    status = pytest.main([*options, *targets], plugins=[record])
    package = Path(sys.modules["posttrain"].__file__ or "").resolve() if "posttrain" in sys.modules else None
    if package is not None and place.resolve() not in package.parents:
        print(f"the tests ran against {package}")
        return {"kind": "broken", "test": ""}
    if record.uncollected:
        return {"kind": "broken", "test": record.uncollected[0]}
    if record.failed:
        return {"kind": "failed", "test": record.failed}
    return {"kind": "passed" if status == 0 and record.ran else "broken", "test": ""}


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
