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
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
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
    began = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="sabotage-", ignore_cleanup_errors=True) as folder:
        snapshot(Path(folder))
        limits = _baseline(mutants, Path(folder), jobs=arguments.jobs)
        if limits is None:
            return 1
        work = [(mutant, mutant.tests, limits[mutant.name]) for mutant in mutants]
        outcomes = _all(work, Path(folder), jobs=arguments.jobs, say=_say)
    return _verdict(mutants, outcomes, time.monotonic() - began)


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


def _baseline(mutants: Sequence[Mutant], folder: Path, *, jobs: int) -> dict[str, float] | None:
    """Mutant name -> its limit in seconds, from runs of the same tests on the unmutated copy; None if one fails."""
    targets = list(dict.fromkeys(mutant.tests for mutant in mutants))
    print(f"{len(mutants)} mutants; first {len(targets)} runs of their tests without any", flush=True)
    outcomes = _all([(None, tests, 1e6) for tests in targets], folder, jobs=jobs, say=lambda *_: None)
    sound = True
    for tests, outcome in zip(targets, outcomes, strict=True):
        if outcome.kind != "passed":
            print(f"{outcome.output}\nwithout any mutant {' '.join(tests)} {outcome.kind}: {outcome.test}")
            sound = False
    seconds = {tests: outcome.seconds for tests, outcome in zip(targets, outcomes, strict=True)}
    return {m.name: max(SHORTEST_LIMIT, TIMES_BASELINE * seconds[m.tests]) for m in mutants} if sound else None


def _all(
    work: Sequence[tuple[Mutant | None, Sequence[str], float]],
    folder: Path,
    *,
    jobs: int,
    say: Callable[[Mutant | None, Outcome], None],
) -> list[Outcome]:
    """Every run's outcome, ``jobs`` of them side by side; ``folder`` holds the snapshot."""
    results: list[Future[Outcome]] = [Future() for _ in work]
    waiting = list(enumerate(work))[::-1]
    running: dict[int, tuple[Run, ExitStack]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, jobs):
                number, (mutant, tests, limit) = waiting.pop()
                stack = ExitStack()
                place = folder / str(number)
                stack.enter_context(private_copy(folder / "posttrain", place, mutant))
                running[number] = Run(place, tests, limit=limit), stack
            for number, (run, stack) in list(running.items()):
                outcome = run.outcome()
                if outcome is not None:
                    results[number].set_result(outcome)
                    say(work[number][0], outcome)
                    stack.close()
                    del running[number]
            time.sleep(0.01)
    finally:
        for run, stack in running.values():
            run.stop()
            stack.close()
    return [result.result() for result in results]


def _say(mutant: Mutant | None, outcome: Outcome) -> None:
    assert mutant is not None
    words = {"passed": "SURVIVED", "failed": "killed", "timeout": "killed (timeout)", "broken": "BROKEN"}
    word = "survived" if mutant.survives and outcome.kind == "passed" else words[outcome.kind]
    test = outcome.test.removeprefix("tests/")
    print(f"{word:9} {outcome.seconds:5.1f} s  {mutant.name:44} {test}", flush=True)


def _verdict(mutants: Sequence[Mutant], outcomes: Sequence[Outcome], seconds: float) -> int:
    """Say what is not as the list says; the exit status."""
    wrong = []
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        survived = outcome.kind == "passed"
        if outcome.kind == "broken":
            wrong.append(f"{mutant.name}: its tests could not be run\n{outcome.output}")
        elif survived and not mutant.survives:
            tests = ", ".join(mutant.tests)
            wrong.append(f"{mutant.name} survived ({mutant.wrong}): write the test that fails beside {tests}")
        elif not survived and mutant.survives:
            wrong.append(f"{mutant.name} is listed as a survivor, but {outcome.test} kills it: remove the reason")
    kinds = Counter(outcome.kind for outcome in outcomes)
    counts = f"{kinds['failed'] + kinds['timeout']} killed ({kinds['timeout']} by timeout), {kinds['passed']} survived"
    if reasons := [m for m, o in zip(mutants, outcomes, strict=True) if m.survives and o.kind == "passed"]:
        counts += f" ({len(reasons)} with a reason)"
    print("\n".join(("", *(f"{m.name} survives: {m.survives}" for m in reasons), *wrong)))
    print(f"{len(mutants)} mutants: {counts}, {kinds['broken']} broken, in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
