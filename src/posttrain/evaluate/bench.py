"""What the tasks of one evaluation share: the configuration, the models, the rows, and whom to tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.template import Template
from posttrain.evaluate.bootstrap import Measure, Record, estimates, paired_differences
from posttrain.evaluate.rows import Items, holds_out, read_items
from posttrain.evaluate.wardrobe import Wardrobe, load_wearing
from posttrain.models.lineage import check_template

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a task found.

    Attributes:
        variants: name -> metrics. num_rows: items that were measured.
        records: one for each variant and item, with ``id``, ``index`` and ``variant``.
        differences: of variants, on the same items.
        decoding: how completions were drawn; None where none were.
        settings: what figures depend on beside models and items: only equal ones can be compared.
        more: what else belongs into the results.
    """

    variants: Mapping[str, Mapping[str, Any]]
    num_rows: int
    records: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]] = ()
    decoding: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Loads what a task asks for, once, and says what it meets.

    Attributes:
        config: loaded with ``command="eval"``. progress: told what is going on: what, done, in all.
        began: when measuring began: models loaded, rows read.
    """

    def __init__(self, config: RunConfig, notify: Callable[[str], None], progress: Progress) -> None:
        """Nothing is loaded yet."""
        self.config = config
        self.notify = notify
        self.progress = progress
        self.began = time.perf_counter()

    @property
    def batch_size(self) -> int:
        """Rows of one forward, or completions drawn side by side."""
        return self.config.train.per_device_eval_batch_size

    @property
    def level(self) -> float:
        """Of the intervals."""
        return self.config.evaluate.confidence

    @property
    def folder(self) -> Path | None:
        """``output_dir``; None where nothing is written."""
        place = self.config.train.output_dir
        return Path(place).expanduser() if place else None

    @cached_property
    def wardrobe(self) -> Wardrobe:
        """The models."""
        self.progress("load the model", 0, 0)
        wardrobe = load_wearing(self.config)
        for sentence in wardrobe.notes:
            self.notify(sentence)
        return wardrobe

    def items(self, stage: str) -> Items:
        """The rows, read and encoded as a stage does."""
        wardrobe = self.wardrobe
        items = read_items(self.config, wardrobe.tokenizer, stage)
        self.say_held_out()
        self.notify(items.report.sentence())
        for sentence in _template_notes(wardrobe, items.template):
            self.notify(sentence)
        self.began = time.perf_counter()
        return items

    def say_held_out(self) -> None:
        """Where the rows are those that training leaves out, say so."""
        if holds_out(self.config):
            size, seed = self.config.data.val_size, self.config.train.seed
            self.notify(f"measuring the rows that training keeps out with `val_size: {size:g}` and `seed: {seed}`")

    def figures(self, measures: Sequence[Measure], records: Sequence[Record]) -> dict[str, Any]:
        """name -> figure and ``name_interval`` -> [low, high] of what the records know."""
        found: dict[str, Any] = {}
        for name, estimate in estimates(measures, records, seed=self.config.train.seed, level=self.level).items():
            found |= {name: estimate.value, f"{name}_interval": estimate.interval}
        return found

    def differences(self, measures: Sequence[Measure], records: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
        """Each variant against the one before it, item by item."""
        found = []
        for minus, of in pairwise(records):
            between = paired_differences(
                measures, records[of], records[minus], seed=self.config.train.seed, level=self.level
            )
            for name, difference in between.items():
                interval = [difference.low, difference.high]
                told = {"metric": name, "of": of, "minus": minus, "difference": difference.value}
                found.append({**told, "interval": interval, "p": difference.p})
        return found


def as_records(ids: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Variant -> what is known of each item, as the lines of the predictions."""
    return [
        {"id": name, "index": index, "variant": variant, **known}
        for variant, records in found.items()
        for index, (name, known) in enumerate(zip(ids, records, strict=True))
    ]


def _template_notes(wardrobe: Wardrobe, template: Template | None) -> list[str]:
    if template is None:
        return []
    notes: list[str] = []
    outfits = [*wardrobe.variants.items(), *([("reward_model", wardrobe.reward)] if wardrobe.reward else [])]
    for name, outfit in outfits:
        for link in outfit.links:
            lineage = link.files.lineage
            note = check_template(
                lineage,
                template.fingerprint,
                folder=link.folder,
                key=name,
                example=template.example,
                allow_mismatch=True,
            )
            notes += [note] if note else []
    return list(dict.fromkeys(notes))
