"""The scripts, which are no package."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="session")
def lists():
    """The module that reads the lists."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("sabotage_mutants")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def script():
    return SCRIPTS / "sabotage.py"
