"""Where a data row says which database it is about and what the reference SQL is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.addresses import is_database_url
from posttrain.errors import UserError
from posttrain.rewards.sql.places import Place, place
from posttrain.rewards.sql.sandbox import check_place

REFERENCE_COLUMNS = ("gold", "output", "reference")


@dataclass(frozen=True)
class Databases:
    """Where the databases of data rows are, as the configuration says.

    Attributes:
        folder: what the column ``db`` is relative to where it names a file.
        url: of the server that has them all, ``{db}`` in it standing for the column; None for files.
        is_role_free: whether a role that could write is accepted.
    """

    folder: Path
    url: str | None = None
    is_role_free: bool = False

    @classmethod
    def configured(cls, config: RunConfig) -> Databases:
        """As the keys `database_dir`, `database_url` and `allow_privileged_role` say."""
        keys = config.evaluate
        folder = Path(keys.database_dir or config.data.dataset_dir)
        return cls(folder, keys.database_url, keys.allow_privileged_role)

    def of(self, row: Mapping[str, Any], number: int) -> Place:
        """The database of a row.

        Args:
            row: columns of the data row. number: of the row from 1, for messages.

        Raises:
            UserError: the row does not say, or says what is no database.
        """
        db = row.get("db")
        if self.url is not None and not (isinstance(db, str) and is_database_url(db)):
            return self._on_server(self.url, db if isinstance(db, str) else None, number)
        if not isinstance(db, str):
            raise UserError(
                f"row {number} of the data has no column `db` (found: {', '.join(sorted(row))}): running SQL needs "
                "the SQLite file, or the address of the database, that the question is about"
            )
        if is_database_url(db):
            return self._on_server(db, None, number)
        written = Path(db)
        beside = self.folder / written.name
        return beside if beside.is_file() and not (self.folder / written).is_file() else self.folder / written

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """See that the database of every row can be used, each one once.

        Raises:
            UserError: names the first row whose database cannot.
        """
        known: set[Place] = set()
        for number, row in enumerate(rows, start=1):
            db = self.of(row, number)
            if db in known:
                continue
            if isinstance(db, Path) and not db.is_file():
                raise UserError(
                    f"row {number} of the data names the database {row['db']!r}, but there is no {db}; correct the "
                    "column `db`, or name the folder that it is seen from in `database_dir`"
                )
            if not isinstance(db, Path):
                check_place(db)
            known.add(db)

    def _on_server(self, url: str, db: str | None, number: int) -> Place:
        try:
            return place(url, db, is_role_free=self.is_role_free)
        except UserError as error:
            raise UserError(f"row {number} of the data: {error}") from None


def database(row: Mapping[str, Any], folder: Path, number: int) -> Place:
    """The database of a row: its column ``db``, a file seen from ``folder`` or an address.

    Args:
        row: columns of the data row. folder: what ``db`` is relative to. number: of the row from 1, for messages.

    Raises:
        UserError: the row has no such column.
    """
    return Databases(folder).of(row, number)


def reference_sql(row: Mapping[str, Any], number: int, column: str | None = None) -> str:
    """The SQL that the row gives as its answer: in ``column``, else in the first of ``REFERENCE_COLUMNS`` it has.

    Raises:
        UserError: no such column holds it.
    """
    names = (column,) if column else REFERENCE_COLUMNS
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise UserError(
        f"row {number} of the data has no reference SQL (looked for the columns {', '.join(names)}; "
        f"found: {', '.join(sorted(row))})"
    )
