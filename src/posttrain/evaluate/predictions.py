"""Files of predictions that some program wrote earlier, item by item, for tasks that score text without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.files import rows_of_file
from posttrain.data.formats import ROLE_NAMES, Example, Message, Messages, PromptExample
from posttrain.errors import UserError
from posttrain.evaluate.items import id_of_prompt, ids_of_examples, numbered
from posttrain.evaluate.sql_files import rows_of_sql_file

TEXT_COLUMNS = ("predict", "completion", "prediction", "response", "generated_text", "text")
"""Where a row is looked for what was predicted, in this order."""
REFERENCE_COLUMNS = ("reference", "label", "gold", "answer", "output")
"""Where a row is looked for what counts as right, in this order."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of a file.

    Attributes:
        text: what was predicted. asked: the chat, or the prompt as text, "" where the file does not say.
        reference: what counts as right; None where the file does not say.
        name: of the item, from the file itself or made of what it says. where: the file and its row.
        columns: of the row.
    """

    text: str
    asked: Messages | str
    reference: str | None
    name: str
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """Predictions of several systems for the same items.

    Attributes:
        ids: names of the items. asked, references, extras: of each item.
        said: system -> its predictions in the order of the items.
    """

    ids: tuple[str, ...]
    asked: tuple[Messages | str, ...]
    references: tuple[str | None, ...]
    extras: tuple[Mapping[str, Any], ...]
    said: Mapping[str, tuple[Prediction, ...]]


def prediction_files(config: RunConfig) -> dict[str, Path]:
    """System -> its file, as ``predictions`` says; a file without a name is called by its own.

    Raises:
        UserError: an entry is malformed, or two have one name.
    """
    found: dict[str, Path] = {}
    for entry in config.evaluate.predictions:
        name, separator, path = (part.strip() for part in entry.partition("="))
        if not separator:
            name, path = Path(entry).stem, entry.strip()
        if not name or not path or name in found:
            wrong = "is there twice" if name in found else "is not name=file"
            raise UserError(
                f"predictions: `{entry}` {wrong}; write, for example, predictions: sft=sft.jsonl, ppo=p.jsonl"
            )
        found[name] = Path(path).expanduser()
    return found


def read_predictions(config: RunConfig, examples: Sequence[Example] | None) -> Aligned:
    """The predictions of all files, brought into one order.

    With a dataset the items are its rows: a file names them by ``id``, else holds one row for each in the same order.
    Without one they are those of the first file, and the others must hold the same ones, in any order.

    Args:
        config: names files and columns. examples: prompts of the dataset; None without one.

    Raises:
        UserError: a file is empty or malformed, or does not fit the dataset or the other files.
    """
    files = {name: _read(config, name, path) for name, path in prediction_files(config).items()}
    if examples is not None:
        prompts = [example for example in examples if isinstance(example, PromptExample)]
        ids = ids_of_examples(prompts)
        references = tuple(reference_of(p.extras, config.evaluate.reference_column) for p in prompts)
        said = {name: _in_order(name, rows, ids, references) for name, rows in files.items()}
        asked: tuple[Messages | str, ...] = tuple(prompt.prompt for prompt in prompts)
        return Aligned(ids=ids, asked=asked, references=references, extras=tuple(p.extras for p in prompts), said=said)
    first, *others = files
    rows = files[first]
    ids, references = tuple(row.name for row in rows), tuple(row.reference for row in rows)
    said = {first: tuple(rows)}
    for name in others:
        said[name] = _same_items(name, files[name], first, ids, references)
    return Aligned(
        ids=ids,
        asked=tuple(row.asked for row in rows),
        references=references,
        extras=tuple(row.columns for row in rows),
        said=said,
    )


def reference_of(columns: Mapping[str, Any], column: str | None) -> str | None:
    """What counts as right for a row: ``column``, else the first of ``REFERENCE_COLUMNS`` that holds text or a "
    "number."""
    for name in (column,) if column else REFERENCE_COLUMNS:
        value = columns.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    return None


def _read(config: RunConfig, name: str, path: Path) -> list[Prediction]:
    if not path.is_file():
        raise UserError(f"predictions: {name}: there is no file {path}")
    table = rows_of_sql_file(path) if config.evaluate.task == "sql" else list(rows_of_file(path))
    if not table:
        raise UserError(f"predictions: {name}: {path} holds no rows; was the run that writes it interrupted?")
    table = _of_one_variant(name, path, table)
    columns = _text_columns(config, name, table)
    found = [_prediction(config, where, row, columns) for where, row in table]
    names = numbered(prediction.name for prediction in found)
    return [Prediction(**{**vars(prediction), "name": unique}) for prediction, unique in zip(found, names, strict=True)]


def _of_one_variant(name: str, path: Path, table: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Of what an evaluation of several variants wrote, the rows of the one that is called like the system."""
    variants = {str(row["variant"]) for _, row in table if "variant" in row}
    if len(variants) < 2:
        return table
    if name not in variants:
        raise UserError(
            f"predictions: {path} holds {len(variants)} variants ({', '.join(sorted(variants))}); name the one that is "
            f"meant, such as {sorted(variants)[0]}={path}"
        )
    return [(where, row) for where, row in table if str(row.get("variant")) == name]


def _text_columns(config: RunConfig, name: str, table: Sequence[tuple[str, Any]]) -> str:
    wanted = config.evaluate.prediction_column
    where, row = table[0]
    column = wanted or next((each for each in TEXT_COLUMNS if each in row), None)
    if column is None or column not in row:
        looked = f"`{wanted}`" if wanted else " or ".join(TEXT_COLUMNS)
        raise UserError(
            f"predictions: {name}: {where}: no column {looked} (found: {', '.join(map(str, row)) or 'none'}); name the "
            "column that holds the prediction in prediction_column"
        )
    return column


def _prediction(config: RunConfig, where: str, row: Mapping[str, Any], column: str) -> Prediction:
    text = row.get(column)
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str):
        several = ", several answers; generate with num_return_sequences: 1" if isinstance(text, list) else ""
        raise UserError(f"{where}: column {column!r} must be text, found {type(text).__name__}{several}")
    asked = _asked(row, where)
    reference = reference_of(row, config.evaluate.reference_column)
    given = row.get("id") if isinstance(asked, str) else None  # a chat names its item better than a file does
    named = str(given) if given is not None else id_of_prompt(asked, reference, row.get("db"))
    return Prediction(text=text, asked=asked, reference=reference, name=named, where=where, columns=row)


def _asked(row: Mapping[str, Any], where: str) -> Messages | str:
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        try:
            return tuple(Message(ROLE_NAMES[str(m["role"])], str(m["content"])) for m in messages)
        except (KeyError, TypeError):
            raise UserError(f"{where}: `messages` must be a list of objects with role and content") from None
    prompt = row.get("prompt", "")
    return prompt if isinstance(prompt, str) else ""


def _in_order(
    name: str, rows: Sequence[Prediction], ids: Sequence[str], references: Sequence[str | None]
) -> tuple[Prediction, ...]:
    """The predictions in the order of the dataset's items."""
    by_name = {row.name: row for row in rows}
    if set(ids) <= set(by_name):
        return tuple(by_name[each] for each in ids)
    if len(rows) != len(ids):
        raise UserError(
            f"predictions: {name}: {rows[0].where.rpartition(',')[0]} holds {len(rows)} rows, but the data {len(ids)}: "
            "each row of the data needs its prediction, in the same order (or with its `id`)"
        )
    for number, (row, reference) in enumerate(zip(rows, references, strict=True), start=1):
        if row.reference is not None and reference is not None and row.reference != reference:
            raise UserError(
                f"predictions: {name}: {row.where} holds another reference ({row.reference[:40]!r}) than row {number} "
                f"of the data ({reference[:40]!r}): the rows are in another order, or of other data"
            )
    return tuple(rows)


def _same_items(
    name: str, rows: Sequence[Prediction], first: str, ids: Sequence[str], references: Sequence[str | None]
) -> tuple[Prediction, ...]:
    """The predictions of a further file in the order of the first one's."""
    by_name = {row.name: row for row in rows}
    if len(rows) == len(ids) and set(ids) == set(by_name):
        return tuple(by_name[each] for each in ids)
    same = len(rows) == len(ids) and None not in references
    if same and all(row.reference == reference for row, reference in zip(rows, references, strict=True)):
        return tuple(rows)  # prompts rendered for another model
    missing = len(set(ids) - set(by_name))
    raise UserError(
        f"predictions: {name} ({len(rows)} rows) and {first} ({len(ids)} rows) answer different items: {missing} of "
        f"{first} are not in {name}. Predict the same rows with both, or name the data in eval_dataset"
    )
