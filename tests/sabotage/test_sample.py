"""A sample of ``make sabotage``, and whether the script notices what it is there to notice."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
MUTANTS = """
[[mutant]]
name = "harmless"
wrong = "nothing"
file = "functional/kl.py"
old = 'return d.square() / 2'
new = 'return d.square() / 2.0'
tests = ["tests/functional/test_kl.py::test_by_hand"]

[[mutant]]
name = "harmless-with-a-reason"
wrong = "nothing"
file = "functional/kl.py"
old = 'return d.square() / 2'
new = 'return d.square() * 0.5'
tests = ["tests/functional/test_kl.py::test_by_hand"]
survives = "it is the same number"

[[mutant]]
name = "harmful-with-a-reason"
wrong = "twice as much"
file = "functional/kl.py"
old = 'return d.square() / 2'
new = 'return d.square()'
tests = ["tests/functional/test_kl.py::test_by_hand"]
survives = "nobody looks"

[[mutant]]
name = "no-import"
wrong = "a module that cannot be imported tells nothing about the tests"
file = "functional/kl.py"
old = "import torch\\nfrom torch import Tensor"
new = "import torches\\nfrom torch import Tensor"
tests = ["tests/functional/test_kl.py::test_by_hand"]
"""


def sabotage(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--jobs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_mutant_of_every_room_is_killed(script) -> None:
    done = sabotage(script, "--short")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("11 mutants: 11 killed (0 by timeout), 0 survived (0 with a reason), 0 broken")


def test_survivors_wrong_reasons_and_broken_mutants_are_told(script, tmp_path) -> None:
    (tmp_path / "list.toml").write_text(MUTANTS, encoding="utf-8")
    done = sabotage(script, "--mutants", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout
    assert "harmless survived (nothing): write the test that fails beside tests/functional/test_kl.py" in said
    assert "harmless-with-a-reason survives: it is the same number" in said
    assert "harmful-with-a-reason is listed as a survivor, but tests/functional/test_kl.py::test_by_hand" in said
    assert "no-import: its tests could not be run" in said
    last = said.splitlines()[-1]
    assert last.startswith("4 mutants: 1 killed (0 by timeout), 2 survived (1 with a reason), 1 broken")
