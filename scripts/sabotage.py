"""Are the tests any good? Puts one deliberate mistake after another into the package and sees whether a test fails.

    python scripts/sabotage.py                    every mutant
    python scripts/sabotage.py --only gae         those with "gae" in their name or file
    python scripts/sabotage.py --sample 10 --seed 3

The mutants are data: scripts/mutants/*.toml. Each is applied to a private copy of the package, never to the working
tree. Exit status 1 where a mutant survives that no reason is given for, where one is killed that a reason says
survives, where one does not apply any more, or where the unmutated copy does not pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sabotage_mutants import LISTS, ListError, Mutant, chosen, read_mutants, stale
from sabotage_run import Outcome, Run, preload, private_copy, snapshot

# Enough for a busy machine: only a mutant that never ends gets there.
SHORTEST_LIMIT = 120.0
TIMES_BASELINE = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 where all is as the list says."""
    arguments = _arguments(argv)
    try:
        everything = read_mutants(arguments.mutants)
    except ListError as error:
        print(f"sabotage: {error}", file=sys.stderr)
        return 1
    if complaints := stale(everything):
        print("\n".join(f"stale: {complaint}" for complaint in complaints))
        return 1
    options = {"only": arguments.only, "short": arguments.short, "sample": arguments.sample, "seed": arguments.seed}
    mutants = chosen(everything, **options)
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.name:44} {mutant.file:32} {mutant.wrong}")
        print(f"{len(mutants)} mutants")
        return 0
    if not mutants:
        print("sabotage: no mutant is called that", file=sys.stderr)
        return 1
    print(f"{len(mutants)} mutants", flush=True)
    began = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="sabotage-", ignore_cleanup_errors=True) as folder:
        snapshot(Path(folder))
        outcomes = _all(mutants, Path(folder), jobs=arguments.jobs)
    return _verdict([(mutant, outcomes[mutant.name]) for mutant in mutants], time.monotonic() - began)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=_cores(), help="runs side by side (default: one per core)")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="draw N mutants instead of taking all")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--short", action="store_true", help="those that the list marks as the sample: one a room")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in their name or file")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--mutants", type=Path, default=LISTS, metavar="FOLDER", help="of the lists")
    return parser.parse_args(argv)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Work:
    """A run of tests to be done: with a mutant, or without any."""

    mutant: Mutant | None
    tests: tuple[str, ...]
    limit: float = 1e6


def _all(mutants: Sequence[Mutant], folder: Path, *, jobs: int) -> dict[str, Outcome]:
    """Mutant name -> what became of it, ``jobs`` runs side by side; ``folder`` holds the snapshot.

    A run of the same tests without any mutant goes first: where that does not pass, its mutants say nothing.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = deque(_Work(None, tests) for tests in dict.fromkeys(mutant.tests for mutant in mutants))
    running: dict[Path, tuple[_Work, Run, ExitStack]] = {}
    places = (folder / str(number) for number in itertools.count())
    try:
        while waiting or running:
            while waiting and len(running) < max(1, jobs):
                work, place, stack = waiting.popleft(), next(places), ExitStack()
                stack.enter_context(private_copy(folder / "posttrain", place, work.mutant))
                running[place] = work, Run(place, work.tests, limit=work.limit), stack
            for place, (work, run, stack) in list(running.items()):
                outcome = run.outcome()
                if outcome is None:
                    continue
                stack.close()
                del running[place]
                if work.mutant is not None:
                    outcomes[work.mutant.name] = outcome
                    _say(work.mutant, outcome)
                    continue
                judged = [mutant for mutant in mutants if mutant.tests == work.tests]
                if outcome.kind == "passed":
                    limit = max(SHORTEST_LIMIT, TIMES_BASELINE * outcome.seconds)
                    waiting.extendleft(_Work(mutant, mutant.tests, limit) for mutant in reversed(judged))
                else:
                    print(f"{outcome.output}\nwithout any mutant: {outcome.kind} {outcome.test}", flush=True)
                    failed = dataclasses.replace(outcome, kind="broken", output="see above: they fail without it, too")
                    outcomes |= dict.fromkeys((mutant.name for mutant in judged), failed)
            time.sleep(0.02)
    finally:
        for _, run, stack in running.values():
            run.stop()
            stack.close()
    return outcomes


def _say(mutant: Mutant, outcome: Outcome) -> None:
    words = {"passed": "SURVIVED", "failed": "killed", "timeout": "killed (timeout)", "broken": "BROKEN"}
    word = "survived" if mutant.survives and outcome.kind == "passed" else words[outcome.kind]
    test = outcome.test.removeprefix("tests/")
    print(f"{word:9} {outcome.seconds:5.1f} s  {mutant.name:44} {test}", flush=True)


def _verdict(judged: Sequence[tuple[Mutant, Outcome]], seconds: float) -> int:
    """Say what is not as the list says; the exit status."""
    wrong, reasons = [], []
    for mutant, outcome in judged:
        survived = outcome.kind == "passed"
        if outcome.kind == "broken":
            wrong.append(f"{mutant.name}: its tests could not be run\n{outcome.output}")
        elif survived and mutant.survives:
            reasons.append(f"{mutant.name} survives: {mutant.survives}")
        elif survived:
            tests = ", ".join(mutant.tests)
            wrong.append(f"{mutant.name} survived ({mutant.wrong}): write the test that fails beside {tests}")
        elif mutant.survives:
            wrong.append(f"{mutant.name} is listed as a survivor, but {outcome.test} kills it: remove the reason")
    kinds = Counter(outcome.kind for _, outcome in judged)
    killed = f"{kinds['failed'] + kinds['timeout']} killed ({kinds['timeout']} by timeout)"
    survived = f"{kinds['passed']} survived ({len(reasons)} with a reason)"
    print("\n".join(("", *reasons, *wrong)))
    print(f"{len(judged)} mutants: {killed}, {survived}, {kinds['broken']} broken, in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
