"""Where a data row says which database it is about and what the reference SQL is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

REFERENCE_COLUMNS = ("gold", "output", "reference")


def database(row: Mapping[str, Any], folder: Path, number: int) -> Path:
    """The database of a row: its column ``db``, seen from ``folder``.

    Args:
        row: columns of the data row. folder: what ``db`` is relative to. number: of the row from 1, for messages.

    Raises:
        UserError: the row has no such column.
    """
    if not isinstance(row.get("db"), str):
        raise UserError(
            f"row {number} of the data has no column `db` (found: {', '.join(sorted(row))}): running SQL needs the "
            "SQLite file that the question is about"
        )
    written = Path(row["db"])
    beside = folder / written.name
    return beside if beside.is_file() and not (folder / written).is_file() else folder / written


def reference_sql(row: Mapping[str, Any], number: int) -> str:
    """The SQL that the row gives as its answer.

    Raises:
        UserError: none of the known columns holds it.
    """
    for name in REFERENCE_COLUMNS:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise UserError(
        f"row {number} of the data has no reference SQL (looked for the columns {', '.join(REFERENCE_COLUMNS)}; "
        f"found: {', '.join(sorted(row))})"
    )
