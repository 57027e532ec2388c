"""Mutants as data: one deliberate mistake each, described in scripts/mutants/*.toml, one file per room."""

from __future__ import annotations

import ast
import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "posttrain"
LISTS = Path(__file__).resolve().parent / "mutants"


class ListError(Exception):
    """A list of mutants that cannot be used as it is."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake that somebody could make.

    Attributes:
        name: unique. wrong: what goes wrong, in words.
        file: path under src/posttrain. old: text that occurs in it exactly once. new: the mistake.
        tests: test files or test functions, from the root of the project, of which one must fail.
        survives: why none of them can; "" where one must.
        sample: part of the short run.
    """

    name: str
    wrong: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""
    sample: bool = False

    @property
    def room(self) -> str:
        """The first part of ``file``."""
        return self.file.split("/")[0]

    def source(self, package: Path = PACKAGE) -> str:
        """The text of ``file`` with the mistake in it.

        Raises:
            ListError: ``old`` does not occur exactly once (the mutant is stale), or the result is no Python.
        """
        path = package / self.file
        if not path.is_file():
            raise ListError(f"{self.name}: there is no {self.file}")
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ListError(f"{self.name}: its `old` text occurs {count} times in {self.file}, not once")
        changed = text.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text))
        except SyntaxError as error:
            raise ListError(f"{self.name}: {self.file} is no Python any more ({error})") from error
        if same:
            raise ListError(f"{self.name}: `new` says the same as `old`")
        return changed


def read_mutants(folder: Path = LISTS) -> list[Mutant]:
    """All mutants of the lists in ``folder``, in order.

    Raises:
        ListError: a list is damaged, or two mutants have one name.
    """
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            try:
                mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            except (KeyError, TypeError) as error:
                raise ListError(f"{path.name}, mutant {entry.get('name')!r}: {error}") from error
            if not mutant.tests:
                raise ListError(f"{mutant.name}: names no test")
            found.append(mutant)
    names = [mutant.name for mutant in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ListError(f"two mutants are called {', '.join(sorted(twice))}")
    return found


def stale(mutants: Sequence[Mutant], *, root: Path = ROOT) -> list[str]:
    """What is out of date in the list: a sentence for each mutant that does not apply, or whose tests are gone."""
    complaints = []
    for mutant in mutants:
        try:
            mutant.source(root / "src" / "posttrain")
        except ListError as error:
            complaints.append(str(error))
        for target in mutant.tests:
            file, _, function = target.partition("::")
            path = root / file
            if not path.is_file():
                complaints.append(f"{mutant.name}: there is no {file}")
            elif function and f"def {function.split('[')[0]}(" not in path.read_text(encoding="utf-8"):
                complaints.append(f"{mutant.name}: {file} has no {function}")
    return complaints


def chosen(
    mutants: Sequence[Mutant], *, only: str = "", short: bool = False, sample: int = 0, seed: int = 0
) -> list[Mutant]:
    """The mutants to run, in the order of the list.

    Args:
        mutants: all of them.
        only: keep those with this text in name or file.
        short: keep those that the list marks as the sample.
        sample: draw that many; 0 takes all.
        seed: of the draw.
    """
    kept = [m for m in mutants if (only in m.name or only in m.file) and (m.sample or not short)]
    if 0 < sample < len(kept):
        numbers = random.Random(seed).sample(range(len(kept)), sample)
        kept = [kept[number] for number in sorted(numbers)]
    return kept
