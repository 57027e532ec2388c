"""The two sides of a dataset, and which rows are held out: by lot, or by the value of a column."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.encode import Report
from posttrain.data.formats import Example
from posttrain.data.template import Template
from posttrain.errors import UserError

_DIGITS = 13  # of a hexadecimal digest: what a float holds exactly


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a stage trains on and is evaluated on: rows (pt, sft), pairs (rm, dpo), answers (kto), else prompts.

    Attributes:
        train, validation: encoded rows; ``validation`` is empty where none was asked for.
        report: account of the training rows. validation_report: of the others, None where there are none.
        template: how chats were rendered; None for plain documents.
        notes: sentences for the user about where the rows came from.
    """

    train: Sequence[Any]
    validation: Sequence[Any]
    report: Report
    validation_report: Report | None = None
    template: Template | None = None
    notes: tuple[str, ...] = ()


def grouped(examples: tuple[Example, ...], row: Mapping[str, Any], where: str, key: str | None) -> tuple[Example, ...]:
    """The examples of a row, marked with what they have in common with other rows: a hash of the column ``key``.

    Raises:
        UserError: if the row has no such column.
    """
    if key is None:
        return examples
    if key not in row:
        raise UserError(f"{where}: no column {key!r} to split by (found: {', '.join(map(str, row))}); see `split_key`")
    value = json.dumps(row[key], sort_keys=True, ensure_ascii=True, default=str)
    group = hashlib.sha256(value.encode()).hexdigest()
    return tuple(replace(example, group=group) for example in examples)


def hold_out(examples: Sequence[Example], val_size: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split off validation examples; both parts keep their order.

    Raises:
        UserError: as ``held_out_places``.
    """
    chosen = set(held_out_places(examples, val_size, seed))
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]


def held_out_places(examples: Sequence[Example], val_size: float, seed: int) -> list[int]:
    """Where the held-out examples stand among all.

    Args:
        examples: n examples; where they are marked by ``grouped``, whole groups are held out, chosen by their hash
            alone, so that more rows, another order or another seed move none of them.
        val_size: a number of examples if at least 1, else a share of them (at least one if above 0). Of groups: as many
            as hold this number, or those whose hash falls into this share.
        seed: chooses, where there are no groups.

    Raises:
        UserError: if nothing would be left to train on, or no group is held out.
    """
    if val_size <= 0:
        return []
    n = len(examples)
    if examples and examples[0].group:
        groups = held_out_groups([example.group for example in examples], val_size)
        return [i for i, example in enumerate(examples) if example.group in groups]
    count = int(val_size) if val_size >= 1 else max(1, round(n * val_size))
    if count >= n:
        raise UserError(f"val_size {val_size:g} leaves nothing to train on: there are only {n} usable rows")
    return sorted(random.Random(f"validation:{seed}").sample(range(n), count))


def held_out_groups(groups: Sequence[str], val_size: float) -> set[str]:
    """The groups that are held out, from that of each row.

    Raises:
        UserError: if that would be all of them, or none.
    """
    sizes = Counter(groups)
    if val_size < 1:
        chosen = {group for group in sizes if int(group[:_DIGITS], 16) < val_size * 16**_DIGITS}
    else:
        chosen, count = set(), 0
        for group in sorted(sizes):
            if count >= val_size:
                break
            chosen.add(group)
            count += sizes[group]
    if len(chosen) in (0, len(sizes)):
        left = "holds out none" if not chosen else "leaves nothing to train on"
        raise UserError(
            f"val_size {val_size:g} {left}: `split_key` has only {len(sizes)} values in {len(groups)} usable rows; "
            "give another val_size, such as a whole number of rows, or another column"
        )
    return chosen
