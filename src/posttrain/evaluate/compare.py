"""Finished evaluations side by side: the same items paired, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluate.bootstrap import Difference, Estimate, Measure, Record, estimates, holm, paired_differences
from posttrain.evaluate.measured import measures_of
from posttrain.evaluate.run_folders import RunFolder
from posttrain.models.variants import ONLY

NUM_RESAMPLES = 10_000
_PER_COMPARISON = 100
_MOST_RESAMPLES = 100_000
_FEW = 30


@dataclass(frozen=True)
class Compared:
    """One figure of one pair of systems.

    Attributes:
        p_holm: p as it counts among all comparisons of the table.
        is_significant: whether that is below 1 − level.
    """

    measure: Measure
    of: str
    minus: str
    difference: Difference
    p_holm: float
    is_significant: bool

    @property
    def better(self) -> str:
        """The system that is better by this figure; "" where the difference may be chance or has no better side."""
        if not self.is_significant or not self.measure.better:
            return ""
        return self.of if (self.difference.value > 0) == (self.measure.better == "higher") else self.minus


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several systems on the same items.

    Attributes:
        num_resamples: of the bootstrap. systems: their names, the baseline first. measures: what all of them know.
        figures: measure -> system -> figure. differences: of every pair.
        notes: what a reader should know.
    """

    task: str
    num_items: int
    level: float
    seed: int
    num_resamples: int
    systems: tuple[str, ...]
    measures: tuple[Measure, ...]
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: tuple[Compared, ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "task": self.task,
            "num_items": self.num_items,
            "confidence": self.level,
            "seed": self.seed,
            "num_resamples": self.num_resamples,
            "correction": "holm",
            "systems": {
                system: {
                    measure.name: {"value": found.value, "interval": found.interval}
                    for measure in self.measures
                    for found in (self.figures[measure.name][system],)
                }
                for system in self.systems
            },
            "differences": [
                {
                    "metric": each.measure.name,
                    "of": each.of,
                    "minus": each.minus,
                    "difference": each.difference.value,
                    "interval": [each.difference.low, each.difference.high],
                    "p": each.difference.p,
                    "p_holm": each.p_holm,
                    "is_significant": each.is_significant,
                    "better": each.better or None,
                }
                for each in self.differences
            ],
            "notes": list(self.notes),
        }


def compare(
    folders: Sequence[RunFolder],
    *,
    seed: int = 42,
    level: float = 0.95,
    all_pairs: bool = False,
    common_items: bool = False,
) -> Comparison:
    """Compare all variants of all runs with the first one, or with each other.

    Args:
        folders: evaluations of one task on the same items.
        seed: of the resampling. level: of intervals, and 1 − that of significance over all comparisons together.
        all_pairs: every pair, not only those with the first system.
        common_items: where runs measured different items, compare on those that all of them measured.

    Raises:
        UserError: other tasks, settings or items, or fewer than two systems.
    """
    task = _one_task(folders)
    _check_settings(folders)
    systems = _systems(folders)
    ids = _shared_items(systems, common_items)
    records = {name: [by_id[each] for each in ids] for name, by_id in systems.items()}
    measures = measures_of(task, [record for each in records.values() for record in each])
    found = {
        name: estimates(measures, each, seed=seed, level=level, num_resamples=NUM_RESAMPLES)
        for name, each in records.items()
    }
    known = tuple(m for m in measures if all(m.name in figures for figures in found.values()))
    if not known:
        raise UserError(f"task {task}: the runs have no figure in common that could be compared")
    names = list(records)
    pairs = [(of, minus) for at, minus in enumerate(names) for of in names[at + 1 :] if all_pairs or at == 0]
    # the smallest p that a bootstrap can give must be small enough for that many comparisons
    resamples = max(NUM_RESAMPLES, min(_PER_COMPARISON * len(pairs) * len(known), _MOST_RESAMPLES))
    return Comparison(
        task=task,
        num_items=len(ids),
        level=level,
        seed=seed,
        num_resamples=resamples,
        systems=tuple(names),
        measures=known,
        figures={m.name: {name: found[name][m.name] for name in names} for m in known},
        differences=_tested(known, records, pairs, seed=seed, level=level, num_resamples=resamples),
        notes=_notes(folders, len(ids), systems),
    )


def _tested(
    measures: Sequence[Measure],
    records: Mapping[str, Sequence[Record]],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    level: float,
    num_resamples: int,
) -> tuple[Compared, ...]:
    """Every figure of every pair, their p-values corrected together."""
    found = []
    for of, minus in pairs:
        between = paired_differences(
            measures, records[of], records[minus], seed=seed, level=level, num_resamples=num_resamples
        )
        found += [(m, of, minus, between[m.name]) for m in measures if m.name in between]
    corrected = holm([difference.p for *_, difference in found])
    return tuple(Compared(*each, p_holm, p_holm < 1 - level) for each, p_holm in zip(found, corrected, strict=True))


def _one_task(folders: Sequence[RunFolder]) -> str:
    first = folders[0]
    for other in folders[1:]:
        if other.results["task"] != first.results["task"]:
            raise UserError(
                f"{first.path} measured task {first.results['task']} and {other.path} task {other.results['task']}: "
                "only evaluations of one task can be compared"
            )
    return str(first.results["task"])


def _check_settings(folders: Sequence[RunFolder]) -> None:
    first, settings = folders[0], folders[0].results.get("settings", {})
    for other in folders[1:]:
        theirs = other.results.get("settings", {})
        for name in dict.fromkeys((*settings, *theirs)):
            if settings.get(name) != theirs.get(name):
                raise UserError(
                    f"{first.path} was measured with {name}: {settings.get(name)} and {other.path} with {name}: "
                    f"{theirs.get(name)}, so their figures mean different things; evaluate again with the same setting"
                )


def _systems(folders: Sequence[RunFolder]) -> dict[str, dict[str, Record]]:
    """System -> item -> record, in the order of the runs and of the variants in them."""
    found: dict[str, dict[str, Record]] = {}
    for folder in folders:
        variants = list(dict.fromkeys(str(record["variant"]) for record in folder.records))
        for variant in variants:
            alone = len(folders) == 1
            name = variant if alone else folder.name if variants in ([ONLY], ["reward"]) else f"{folder.name}:{variant}"
            found[name] = {str(r["id"]): r for r in folder.records if str(r["variant"]) == variant}
    if len(found) < 2:
        raise UserError(
            f"{folders[0].path} holds one system ({next(iter(found))}); give a second run, or an evaluation of several "
            "variants"
        )
    return found


def _shared_items(systems: Mapping[str, Mapping[str, Record]], common_items: bool) -> list[str]:
    first, *others = systems
    shared = [each for each in systems[first] if all(each in systems[other] for other in others)]
    for other in others:
        missing, further = set(systems[first]) - set(systems[other]), set(systems[other]) - set(systems[first])
        if (missing or further) and not common_items:
            raise UserError(
                f"{first} and {other} measured different items: {len(missing)} of {len(systems[first])} are not in "
                f"{other}, {len(further)} of {len(systems[other])} not in {first}. Evaluate both on the same rows "
                "(eval_dataset, max_samples, val_size and seed), or add --common-items to compare on the "
                f"{len(set(systems[first]) & set(systems[other]))} that both measured"
            )
    if not shared:
        raise UserError(f"{first} and {', '.join(others)} have no item in common, so nothing can be compared")
    return shared


def _notes(
    folders: Sequence[RunFolder], num_items: int, systems: Mapping[str, Mapping[str, Record]]
) -> tuple[str, ...]:
    notes = []
    if any(len(by_id) > num_items for by_id in systems.values()):
        notes.append(f"compared on the {num_items} items that all systems measured")
    if num_items < _FEW:
        notes.append(f"{num_items} items are few: intervals are rough, and only large differences can be seen")
    decodings = [folder.results.get("decoding") or {} for folder in folders]
    for name in dict.fromkeys(key for decoding in decodings for key in decoding):
        values = [decoding.get(name) for decoding in decodings]
        if any(value != values[0] for value in values) and name != "seed":
            told = ", ".join(f"{folder.name} {value}" for folder, value in zip(folders, values, strict=True))
            notes.append(f"answers were drawn differently: {name} was {told}")
    return tuple(notes)
