"""How fast a run goes, phase by phase: live tokens per second, padding, and how far from the least it could need."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from posttrain.engine import SMALLEST, Engine, Limits, Processes, machine_limits
from posttrain.models.work import Ledger, Work, counting
from posttrain.types import Role

PARTS_OF_GENERATE = ("prefill", "decode")


def measured(engine: Engine, wanted: bool | None) -> Limits | None:
    """What the machine can do for all processes of a run together; takes about a second.

    Args:
        engine: about to train.
        wanted: measure, or do not; None measures for models that are large enough for it to mean something.
    """
    role = next(role for role in (Role.ACTOR, Role.REWARD) if role in engine.roles)
    model = engine.roles.backbone_of(role)
    if not (sum(p.numel() for p in model.parameters()) >= SMALLEST if wanted is None else wanted):
        return None
    engine.processes.wait()  # they share the machine while they train, so they do while this is measured
    found = engine.processes.gather(list(vars(machine_limits(engine.device, model.dtype)).values()))
    return Limits(*(sum(values) for values in zip(*found, strict=True)))


class Pace:
    """Time and work of the phases of a run: of the step under way, and of the whole run.

    Attributes:
        totals: phase -> its work since the run began, interrupted attempts included as far as their last checkpoint.
        limits: what the machine can do at most; None where that was not measured.
    """

    def __init__(self, limits: Limits | None = None, processes: Processes | None = None) -> None:
        """For one run, whose processes each count their own share; ``limits`` are those of all of them together."""
        self.limits = limits
        self.totals = Ledger()
        self._processes = processes or Processes()
        self._ledger = Ledger()

    @property
    def seconds(self) -> dict[str, float]:
        """Phase -> seconds of the step under way."""
        return {name: work.seconds for name, work in self._ledger.items()}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent and the work done inside to ``name``."""
        began = time.perf_counter()
        with counting(self._ledger, name):
            yield
        self._ledger[name].seconds += time.perf_counter() - began

    def take(self, live_tokens: Mapping[str, float] | None = None) -> dict[str, float]:
        """What the step that is over has to say, see ``statistics``; starts anew.

        Args:
            live_tokens: phase -> real tokens that it dealt with; None is what was counted.
        """
        own, self._ledger = self._ledger, Ledger()
        ledger = own if self._processes.size == 1 else self._shared(own)
        for name, tokens in (live_tokens or {}).items():
            ledger[name].tokens = int(tokens)
        for name, work in ledger.items():
            self.totals[name].add(work)
        return statistics(ledger, self.limits)

    def results(self) -> dict[str, float]:
        """What the whole run has to say: as ``statistics``, with the operations themselves; limits where measured."""
        found = statistics(self.totals, self.limits)
        for name, work in self.totals.items():
            found |= {f"{name}_flops": work.flops, f"{name}_ideal_flops": work.ideal_flops}
        if self.limits is not None:
            found |= {f"limit_{name}": value for name, value in vars(self.limits).items()}
        return found

    def sentence(self) -> str:
        """What the machine can do, for the user; "" where it was not measured."""
        if self.limits is None:
            return ""
        flops, size = (value / 1e9 for value in vars(self.limits).values())
        return f"this machine's limits, measured: {flops:,.0f} GFLOP/s, {size:,.1f} GB/s of memory"

    def state(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint."""
        return {name: work.plain() for name, work in self.totals.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.totals = Ledger({name: Work.of(plain) for name, plain in state.items()})

    def _shared(self, own: Ledger) -> Ledger:
        """The step's work of all processes; what was asked for and the time are the same for all of them.

        Each samples completions of its own, at its own time.
        """
        ledger, size = Ledger(), self._processes.size
        for number, plain in enumerate(self._processes.gather({name: work.plain() for name, work in own.items()})):
            for name, numbers in plain.items():
                work = Work.of(numbers)
                if name in PARTS_OF_GENERATE:
                    work.seconds /= size
                elif number:
                    work.ideal_flops, work.tokens, work.seconds = 0, 0, 0.0
                ledger[name].add(work)
        return ledger


def statistics(ledger: Mapping[str, Work], limits: Limits | None) -> dict[str, float]:
    """Numbers for the log under names that begin with the phase; all phases together without one.

    ``seconds_<phase>``, ``<phase>_tokens_per_second``, ``<phase>_flops_of_ideal`` (executed operations over the fewest
    possible), ``<phase>_padding_ratio`` (positions computed over those that held a token) and, where the limits are
    known, ``<phase>_x_of_limit``: the time over the least that this machine needs.
    """
    found: dict[str, float] = {}
    whole = Work()
    ideal = 0.0
    for name, work in ledger.items():
        part = name in PARTS_OF_GENERATE
        found[f"seconds_{name}"] = work.seconds
        found[f"{name}_tokens_per_second"] = work.tokens / max(work.seconds, 1e-9)
        if work.ideal_flops:
            found[f"{name}_flops_of_ideal"] = work.flops / work.ideal_flops
        if work.held:
            found[f"{name}_padding_ratio"] = work.positions / work.held
        whole.seconds += 0.0 if part else work.seconds
        whole.flops, whole.ideal_flops = whole.flops + work.flops, whole.ideal_flops + work.ideal_flops
        if limits is None:
            continue
        least = limits.seconds(work)
        ideal += least
        if name == "generate":
            least += sum(limits.seconds(ledger[part]) for part in PARTS_OF_GENERATE if part in ledger)
        if least:
            found[f"{name}_x_of_limit"] = work.seconds / least
    if "train" in ledger:
        found["tokens_per_second"] = ledger["train"].tokens / max(whole.seconds, 1e-9)
    if whole.ideal_flops:
        found["flops_of_ideal"] = whole.flops / whole.ideal_flops
    if ideal:
        found["x_of_limit"] = whole.seconds / ideal
    return found
