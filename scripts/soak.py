"""Kill training runs again and again, resume them, and compare what they end with to runs that nobody disturbed.

    python scripts/soak.py                        20 kills each of pt, sft, rm and ppo (`make soak`)
    python scripts/soak.py --stages ppo --kills 5 --seed 7

Every start is a process ``python -m posttrain train``; most kills come at random times, some are aimed at moments too
short to be met by chance. Between them Ctrl-C, a double Ctrl-C and SIGTERM are sent. Exit status 0 when every run ended
with the same bytes (clocks apart, see ``posttrain.train.clocks``) and every place that had to be hit was.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak_compare import Comparison, compare
from soak_process import LOADING, PLACES, Attempt
from soak_stages import STAGES, make_place, write_configuration

REQUIRED = (LOADING, "step", "save", "end")
MUST_HIT = (LOADING, "end")
STEPS_PER_KILL = {"pt": 12, "sft": 10, "rm": 12, "ppo": 3}
SIGNALS = ("ctrl-c", "ctrl-c twice", "sigterm")
_STOPPING = "Stopping after this step"
_THROUGH = "the run is in"
_INTERRUPTED = 130
_MOST_RUNS = 6


class SoakError(Exception):
    """A run did not behave: what it did and what it said."""


@dataclass
class Clock:
    """Seconds that the parts of a run take on this machine, as the undisturbed run took them."""

    loading: float
    training: float
    ending: float


@dataclass
class Report:
    """What happened to one stage."""

    stage: str
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    signals: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    runs: int = 0
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Differences, and places that no kill has hit."""
        required = (*REQUIRED, "rollout") if self.stage == "ppo" else REQUIRED
        missed = [f"{self.stage}: no kill fell into: {place}" for place in required if not self.kills[place]]
        return missed + [f"{self.stage}: {name}" for found in self.comparisons for name in found.different]

    def row(self) -> list[str]:
        """Cells of the table, see ``table``."""
        equal = sum(len(found.equal) for found in self.comparisons)
        timeless = sum(len(found.timeless) for found in self.comparisons)
        different = sum(len(found.different) for found in self.comparisons)
        counts = [self.kills.total(), *(self.kills[place] for place in PLACES), self.signals.total()]
        return [self.stage, *map(str, [*counts, self.starts, self.runs, equal, timeless, different])]


def table(reports: Sequence[Report]) -> str:
    """One line per stage."""
    head = ["stage", "kills", *PLACES, "signals", "starts", "runs", "equal", "but clocks", "different"]
    rows = [head, *(report.row() for report in reports)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


class Soak:
    """One stage: the run that nobody disturbs, then runs that are killed until the plan of kills is used up."""

    def __init__(self, root: Path, stage: str, aims: Sequence[str], *, seed: int, forked: bool = False, **keys: object):
        """Know what to do.

        Args:
            root: folder with the model and the data of ``make_place``; the runs go there.
            stage: one of ``STAGES``.
            aims: kills and signals in their order, see ``plan``.
            seed: of the runs and of the times.
            forked: see ``Attempt``.
            keys: of the configuration; ``max_steps`` goes by the number of aims where it is not among them.
        """
        self.root, self.stage, self.seed, self.keys = root, stage, seed, keys
        self.forked = forked
        self.steps = int(str(keys.pop("max_steps", 0))) or max(10, len(aims) * STEPS_PER_KILL[stage])
        self.report = Report(stage)
        self.clock = Clock(loading=5.0, training=10.0, ending=1.0)
        self._chance = random.Random(f"{seed}/{stage}")
        self._aims = aims
        self._advancing = max(1, sum(aim not in (LOADING, "restoring", "end") for aim in aims))

    def aims_left(self, aim: str) -> bool:
        """Whether a place too short to be met by chance is still to be hit, and may be aimed at once more."""
        return self.report.kills[aim] == 0 and self.report.kills.total() < 2 * len(self._aims)

    @property
    def whole(self) -> Path:
        """Folder of the undisturbed run."""
        return self.root / f"{self.stage}-whole"

    def run(self) -> Report:
        """Do it all."""
        self.run_whole()
        aims = collections.deque(self._aims)
        while aims or not self.report.runs:
            if self.report.runs == _MOST_RUNS:
                raise SoakError(f"{self.stage}: {self.report.runs} runs ended before these moments came: {[*aims]}")
            self.report.runs += 1
            folder = self.root / f"{self.stage}-killed-{self.report.runs}"
            shutil.rmtree(folder, ignore_errors=True)
            self._configure(folder)
            while not self._finished(folder, aims):
                pass
            if aims:  # it went by faster than the one that was measured
                self.clock = dataclasses.replace(self.clock, training=self.clock.training / 2)
            comparison = compare(self.whole / "out", folder / "out")
            self.report.comparisons.append(comparison)
            say(f"{self.stage}: run {self.report.runs} is through, {len(comparison.different)} files differ")
        return self.report

    def run_whole(self) -> None:
        """Run undisturbed, and learn how long that takes."""
        shutil.rmtree(self.whole, ignore_errors=True)
        self._configure(self.whole)
        attempt = Attempt(self.whole, forked=self.forked)
        attempt.wait(lambda: attempt.trains)
        began = time.monotonic()
        last = attempt.out / f"checkpoint-{self.steps}"
        attempt.wait(last.is_dir)
        trained = time.monotonic()
        attempt.wait((attempt.out / "all_results.json").is_file)  # what follows is Python taking itself down
        written = time.monotonic()
        check(attempt, attempt.end(), 0)
        self.clock = Clock(began - attempt.started, trained - began, written - trained)
        say(f"{self.stage}: undisturbed, {self.steps} steps: {self.clock}")

    def _configure(self, folder: Path) -> None:
        write_configuration(folder, self.root, self.stage, steps=self.steps, seed=self.seed, **self.keys)

    def _finished(self, folder: Path, aims: collections.deque[str]) -> bool:
        """One start: to the next kill or signal of the plan, or to the end of the run."""
        before = newest_checkpoint(folder / "out")
        asked = (folder / "out" / "all_results.json").exists() or self._chance.random() < 0.5
        attempt = Attempt(folder, *(["resume_from_checkpoint=true"] if asked else []), forked=self.forked)
        self.report.starts += 1
        aim = aims[0] if aims else ""
        if aim in SIGNALS:
            place, ended = self._interrupt(attempt, aim)
        else:
            place, ended = self._strike(attempt, aim) if aim else (None, not attempt.end())
        if place:
            if aim not in MUST_HIT or place == aim or not self.aims_left(aim):
                aims.popleft()
            counter = self.report.signals if aim in SIGNALS else self.report.kills
            counter[place] += 1
        elif place is None and (not ended or (attempt.status and aim not in SIGNALS)):
            check(attempt, attempt.end(), 0)
        after = newest_checkpoint(folder / "out")
        if after < before:
            raise SoakError(f"{self.stage}: the newest checkpoint was {before} and is {after}\n{attempt.output}")
        say(f"{self.stage}: aimed at {aim or 'the end'}, hit {place}, checkpoint {before} -> {after} of {self.steps}")
        return place is None

    def _strike(self, attempt: Attempt, aim: str) -> tuple[str | None, bool]:
        """Kill at the moment that ``aim`` names; returns the place hit, and whether the run had ended."""
        window = 1.6 * self.clock.training / self._advancing
        place = None
        if aim == LOADING:
            attempt.wait(lambda: attempt.trains, self._chance.uniform(0.0, self.clock.loading))
        elif aim == "restoring":
            attempt.wait(lambda: attempt.leftovers(aim) or attempt.trains)
            # no time to ask; what it leaves says whether the log was being cut back, else it had not yet begun a step
            place = LOADING if attempt.wait(lambda: attempt.leftovers(aim), 0.5) else None
        elif aim == "end":
            last = attempt.out / f"checkpoint-{self.steps}"
            attempt.wait(lambda: attempt.trains and (last.is_dir() or attempt.leftovers("end")))
            attempt.pause(self._chance.uniform(0.0, 0.8 * self.clock.ending))
        else:
            attempt.wait(lambda: attempt.trains)
            attempt.pause(self._chance.uniform(0.0, window))
            if aim == "save":
                later = self._chance.uniform(0.0, 0.004)
                place = aim if attempt.wait(lambda: attempt.halts_in(aim, later), 60.0) else None
            elif aim != "any":
                place = attempt.reach([aim], 60.0)
        place = attempt.kill(place)
        return place, place is None

    def _interrupt(self, attempt: Attempt, aim: str) -> tuple[str | None, bool]:
        """Send Ctrl-C once or twice, or SIGTERM, in the loop.

        Returns:
            What it was, "" where SIGTERM came outside the loop and ended the process at once, None where the run was
            through before; and whether it was.
        """
        before = newest_checkpoint(attempt.out)
        attempt.wait(lambda: attempt.trains)
        attempt.reach(("rollout", "step", "loop"), 60.0)
        attempt.pause(self._chance.uniform(0.0, self.clock.training / self._advancing / 2))
        number = signal.SIGTERM if aim == "sigterm" else signal.SIGINT
        attempt.send(number)
        if aim == "ctrl-c twice" and attempt.wait(lambda: _STOPPING in attempt.output):
            attempt.send(number)
        status = attempt.end()
        if status == 0 or (status == -number and _THROUGH in attempt.output):  # while Python took itself down
            return None, True
        if status == -signal.SIGTERM:
            return "", False
        check(attempt, status, _INTERRUPTED)
        if aim != "ctrl-c twice" and newest_checkpoint(attempt.out) <= before:
            raise SoakError(f"{attempt.out}: {aim} was not followed by a checkpoint\n{attempt.output}")
        return aim, False


def plan(stage: str, kills: int, seed: int) -> list[str]:
    """What to aim at, in order: mostly anything, the end last, signals in the first two thirds."""
    chance = random.Random(f"{seed}/{stage}/plan")
    if kills < 6:
        return sorted(["save", "step", "end", LOADING, "any"][:kills], key=lambda name: name == "end")
    ends = 2
    aimed = {LOADING: kills // 7, "restoring": kills // 10, "save": kills // 5, "step": kills // 7}
    if stage == "ppo":
        aimed["rollout"] = kills // 7
    middle = [name for name, times in aimed.items() for _ in range(times)]
    middle += ["any"] * (kills - ends - len(middle))
    chance.shuffle(middle)
    for name in SIGNALS:
        middle.insert(chance.randrange(1, len(middle) * 2 // 3), name)
    return middle + ["end"] * ends


def newest_checkpoint(out: Path) -> int:
    """Step of the newest whole checkpoint; 0 when there is none."""
    numbers = [path.name.removeprefix("checkpoint-") for path in out.glob("checkpoint-*")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def check(attempt: Attempt, status: int, expected: int) -> None:
    """Stop with what it said when a process ended otherwise than it should."""
    if status != expected:
        raise SoakError(f"{attempt.out}: exit status {status}, not {expected}\n{attempt.output}")


def say(sentence: str) -> None:
    """Print a line now."""
    print(f"{time.strftime('%H:%M:%S')} {sentence}", flush=True)


def soak(root: Path, stages: Sequence[str], *, kills: int, seed: int, forked: bool) -> list[Report]:
    """All stages; ppo takes its reward from a run of stage rm."""
    make_place(root, seed)
    reports = []
    for stage in stages:
        keys: dict[str, object] = {}
        if stage == "ppo":
            reward = Soak(root, "rm", (), seed=seed, forked=forked)
            if not (reward.whole / "out" / "all_results.json").exists():
                reward.run_whole()
            keys["reward_model"] = reward.whole / "out"
        reports.append(Soak(root, stage, plan(stage, kills, seed), seed=seed, forked=forked, **keys).run())
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--kills", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=1, help="of the runs and of the times")
    parser.add_argument("--forked", action="store_true", help="fork processes that have imported everything: faster")
    parser.add_argument("--folder", type=Path, help="where to run; kept. Without it a temporary one, kept on failure")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # in the background of a shell Ctrl-C is ignored, and that is inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = args.folder or Path(tempfile.mkdtemp(prefix="posttrain-soak-"))
    try:
        reports = soak(root, args.stages, kills=args.kills, seed=args.seed, forked=args.forked)
    except SoakError as error:
        print(f"{error}\nThe runs are in {root}", file=sys.stderr)
        return 1
    print(table(reports))
    problems = [problem for report in reports for problem in report.problems]
    for problem in problems:
        print(problem)
    if problems:
        print(f"The runs are in {root}")
    elif not args.folder:
        shutil.rmtree(root)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
