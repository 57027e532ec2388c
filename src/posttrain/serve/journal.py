"""Work that is done, line by line on the disk, so that a command that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from posttrain.errors import RunError, UserError

_HEADER = "journal"


class Journal:
    """A file of JSON objects, one per line, to which each piece of work is added as soon as it is done.

    The first line holds what the work depends on; a journal that was begun with something else is refused, unless it
    holds no work yet. A line that a kill cut off is taken away when the journal is opened.

    Attributes:
        path: the file. records: what it holds, the first line left out.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, start_over: bool = False) -> None:
        """Open it, or begin one.

        Args:
            path: made with its folder if it is not there.
            settings: name -> plain JSON value of all that the records depend on.
            start_over: throw away what is there.

        Raises:
            UserError: it was begun with other settings, or a line is damaged.
            RunError: it cannot be written.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = b"" if start_over or not path.is_file() else _whole_lines(path.read_bytes())
            if whole:
                self.records = self._read(whole, settings)
                whole = whole if self.records else b""
            self._file = path.open("r+b" if path.is_file() else "w+b")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
            if not whole:
                self._write({_HEADER: dict(settings)})
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from error

    def add(self, record: dict[str, Any]) -> None:
        """Write one record down; it outlives this process from now on.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self._write(record)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self.records.append(record)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="surrogatepass"))
        self._file.flush()

    def _read(self, whole: bytes, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        records = list(self._parsed(whole))
        begun = records[0].get(_HEADER)
        if not isinstance(begun, dict):
            raise UserError(f"{self.path} is no journal of posttrain; name another output_file, or move it away")
        # as JSON gives them back: a tuple is a list there
        now = json.loads(json.dumps(dict(settings)))
        changed = [name for name in {**now, **begun} if now.get(name) != begun.get(name)]
        if changed and len(records) > 1:
            raise UserError(
                f"{self.path} was begun with {_difference(changed[0], begun, now)}. Name another output_file, or write "
                "overwrite_output_dir: true to start over"
            )
        return records[1:]

    def _parsed(self, whole: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line.decode("utf-8", errors="surrogatepass"))
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(
                    f"{self.path}, line {number}: damaged; remove the line, or write overwrite_output_dir: true to "
                    "start over"
                )
            yield record


def _whole_lines(content: bytes) -> bytes:
    """The content up to its last line end."""
    return content[: content.rfind(b"\n") + 1]


def _difference(name: str, begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``judge_model 'a' (now 'b')``, or the name alone where the values are long or nested."""
    words = [json.dumps(values.get(name), ensure_ascii=False) for values in (begun, now)]
    if any(
        len(word) > 60 or isinstance(values.get(name), dict) for word, values in zip(words, (begun, now), strict=True)
    ):
        return f"another {name}"
    return f"{name} {words[0]} (now {words[1]})"
