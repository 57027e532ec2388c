"""What models say to held-out prompts, or what files say that they said, with what counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.encode import EncodedPrompt
from posttrain.data.formats import Messages
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.evaluate.bench import Bench
from posttrain.evaluate.completions import Completed, complete, decoding_of, sampling_params
from posttrain.evaluate.predictions import read_predictions, reference_of
from posttrain.evaluate.rows import read_measured


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Items, and each variant's answers to them.

    Attributes:
        ids: names of the items. asked: the chat that waits for an answer, or the prompt as text.
        references: what counts as right, None where the rows do not say. extras: the rows' other columns.
        texts: variant -> its answers. known: variant -> what else is known of each answer.
        decoding: how they were drawn; None for those from files.
        prompts, template: the encoded prompts and what rendered them; None for those from files.
    """

    ids: tuple[str, ...]
    asked: tuple[Messages | str, ...]
    references: tuple[str | None, ...]
    extras: tuple[Mapping[str, Any], ...]
    texts: Mapping[str, tuple[str, ...]]
    known: Mapping[str, tuple[dict[str, Any], ...]]
    decoding: Mapping[str, Any] | None = None
    prompts: tuple[EncodedPrompt, ...] | None = None
    template: Template | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def right(self) -> list[str]:
        """The references, one for each item.

        Raises:
            UserError: a row has none.
        """
        missing = [place for place, reference in enumerate(self.references) if not reference]
        if missing:
            place = missing[0]
            columns = ", ".join(sorted(map(str, self.extras[place]))) or "none"
            raise UserError(
                f"row {place + 1} has no reference to compare with ({len(missing)} rows in all; columns: {columns}); "
                "name the column that holds what is right in reference_column"
            )
        return [str(reference) for reference in self.references]

    def record(self, variant: str, place: int) -> dict[str, Any]:
        """What a line of the predictions says of one answer, whatever it is measured by."""
        asked = self.asked[place]
        return {
            "prompt": asked if isinstance(asked, str) else asked[-1].content,
            "reference": self.references[place],
            "completion": self.texts[variant][place],
            **self.known[variant][place],
        }


Check = Callable[[Sequence[Mapping[str, Any]]], None]


def read_responses(bench: Bench, check: Check = lambda extras: None) -> Responses:
    """Answers of the models, or those in the files of ``predictions``.

    Args:
        bench: models and rows, or files. check: given the columns of all rows before a model is asked.

    Raises:
        UserError: rows, files or folders cannot be used.
    """
    return _from_files(bench, check) if bench.config.evaluate.predictions else _from_models(bench, check)


def _from_models(bench: Bench, check: Check) -> Responses:
    items = bench.items("ppo")
    assert items.template is not None
    check([row.extras for row in items.rows])
    params = sampling_params(bench.config, items.template)
    completed = complete(bench.wardrobe, items.rows, params, num_slots=bench.batch_size, progress=bench.progress)
    column = bench.config.evaluate.reference_column
    return Responses(
        ids=items.ids,
        asked=tuple(row.messages for row in items.rows),
        references=tuple(reference_of(row.extras, column) for row in items.rows),
        extras=tuple(row.extras for row in items.rows),
        texts={name: found.texts for name, found in completed.items()},
        known={name: _known(found) for name, found in completed.items()},
        decoding=decoding_of(params),
        prompts=tuple(items.rows),
        template=items.template,
    )


def _known(found: Completed) -> tuple[dict[str, Any], ...]:
    columns: dict[str, Sequence[Any]] = {"response_length": found.lengths, "ended": found.ended}
    columns |= {"reward": found.rewards} if found.rewards is not None else {}
    columns |= {"kl": found.kls} if found.kls is not None else {}
    return tuple(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _from_files(bench: Bench, check: Check) -> Responses:
    data = bench.config.data
    examples = None
    if data.eval_dataset or data.dataset:
        examples, report = read_measured(bench.config, "ppo")
        bench.say_held_out()
        report.kept = len(examples)
        bench.notify(report.sentence())
    found = read_predictions(bench.config, examples)
    check(found.extras)
    for name, rows in found.said.items():
        bench.notify(f"{name}: {len(rows)} predictions of {rows[0].where.rpartition(',')[0]}")
    return Responses(
        ids=found.ids,
        asked=found.asked,
        references=found.references,
        extras=found.extras,
        texts={name: tuple(row.text for row in rows) for name, rows in found.said.items()},
        known={name: tuple({} for _ in rows) for name, rows in found.said.items()},
    )
