"""The project's own files, read once, for the tests that read code instead of running it."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "posttrain"


@dataclass(frozen=True)
class SourceFile:
    """One Python file: its path from the root of the project, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self):
        """The first name below the package, ``train`` for ``src/posttrain/train/plots.py``."""
        return self.path.removeprefix("src/posttrain/").split("/")[0].removesuffix(".py")

    def imports(self):
        """(line, full dotted name) of everything imported, also inside functions and for typing only."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}"

    def calls(self):
        """(node, dotted name of what is called), ``torch.load`` for ``torch.load(...)``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node, ast.unparse(node.func)


def read(path):
    text = path.read_text(encoding="utf-8")
    return SourceFile(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def package_files():
    files = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]
    assert len(files) > 20
    return files


@pytest.fixture(scope="session")
def all_files(package_files):
    folders = ("tests", "scripts", "benchmarks")
    return package_files + [read(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
