"""Encoded rows in one safetensors file, mapped into memory when they are read again."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from posttrain.data.encode import EncodedPair, EncodedPrompt
from posttrain.data.formats import Message
from posttrain.data.rankings import EncodedRanking
from posttrain.data.template import EncodedRow
from posttrain.data.unpaired import EncodedAnswer

LAYOUT = 1
"""Counts up when files of earlier versions can no longer be read."""
_KINDS = (EncodedRow, EncodedPair, EncodedRanking, EncodedAnswer, EncodedPrompt)
_NONE = float("nan")


class StoredRows(Sequence[Any]):
    """The rows of one split; each is made anew from the mapped file when it is asked for.

    Attributes:
        lengths: tokens of each row; of several sequences, those of the longest.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tokens, self._masks, self._texts = tensors["tokens"], tensors["masks"], tensors["texts"]
        self._kinds, self._numbers = tensors["kinds"], tensors["numbers"]
        self._starts, self._rows = tensors["starts"].tolist(), tensors["rows"].tolist()
        self._text_starts = tensors["text_starts"].tolist()

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def lengths(self) -> list[int]:
        sequences = [end - start for start, end in zip(self._starts, self._starts[1:], strict=False)]
        return [max(sequences[start:end]) for start, end in zip(self._rows, self._rows[1:], strict=False)]

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        rows = [self._sequence(i) for i in range(self._rows[place], self._rows[place + 1])]
        kind, number = _KINDS[int(self._kinds[place])], float(self._numbers[place])
        if kind is EncodedRow:
            return rows[0]
        if kind is EncodedPair:
            return EncodedPair(rows[0], rows[1], None if number != number else number)
        if kind is EncodedRanking:
            return EncodedRanking(tuple(rows))
        if kind is EncodedAnswer:
            return EncodedAnswer(rows[0], bool(number), rows[1])
        text = self._texts[self._text_starts[place] : self._text_starts[place + 1]].numpy().tobytes()
        rendered, messages, extras = json.loads(text)
        return EncodedPrompt(rows[0].input_ids, rendered, tuple(Message(*message) for message in messages), extras)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_equal, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _sequence(self, number: int) -> EncodedRow:
        start, end = self._starts[number], self._starts[number + 1]
        return EncodedRow(self._tokens[start:end].tolist(), self._masks[start:end].tolist())


def save_rows(path: Path, splits: Mapping[str, Sequence[Any]], metadata: Mapping[str, Any]) -> None:
    """Write the rows of several splits; the file is whole or absent.

    Raises:
        OSError: it cannot be written.
        TypeError: a column beside a prompt is of no type that JSON has.
    """
    tensors = {f"{split}.{name}": tensor for split, rows in splits.items() for name, tensor in _tensors(rows).items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"posttrain": json.dumps({**metadata, "layout": LAYOUT})})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_rows(path: Path) -> tuple[dict[str, StoredRows], dict[str, Any]]:
    """The splits of a file, mapped into memory, and its metadata.

    Raises:
        ValueError: it is damaged, of another layout, or of another program.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["posttrain"])
            if metadata.pop("layout") != LAYOUT:
                raise ValueError("written by another version")
            names = [name.split(".") for name in file.keys()]  # noqa: SIM118
            splits = {split: {n: file.get_tensor(f"{s}.{n}") for s, n in names if s == split} for split, _ in names}
            return {split: StoredRows(tensors) for split, tensors in splits.items()}, metadata
    except OSError:
        raise
    except Exception as error:  # safetensors raises an exception of its own for whatever is wrong inside
        raise ValueError(str(error)) from error


def _equal(mine: Any, theirs: Any) -> bool:
    return bool(mine == theirs)


def _tensors(rows: Sequence[Any]) -> dict[str, Tensor]:
    tokens, masks, starts, places = array("i"), bytearray(), array("q", [0]), array("q", [0])
    kinds, numbers, texts, text_starts = bytearray(), array("d"), bytearray(), array("q", [0])
    for row in rows:
        kinds.append(_KINDS.index(type(row)))
        number = _NONE
        if isinstance(row, EncodedPair) and row.margin is not None:
            number = row.margin
        if isinstance(row, EncodedAnswer):
            number = float(row.desirable)
        numbers.append(number)
        if isinstance(row, EncodedPrompt):
            messages = [[message.role, message.content] for message in row.messages]
            texts += json.dumps([row.text, messages, dict(row.extras)]).encode("ascii")
        text_starts.append(len(texts))
        for sequence in _sequences(row):
            tokens.extend(sequence.input_ids)
            masks += bytes(sequence.loss_mask)
            starts.append(len(tokens))
        places.append(len(starts) - 1)
    return {
        "tokens": _tensor(tokens, torch.int32),
        "masks": _tensor(masks, torch.bool),
        "starts": _tensor(starts, torch.int64),
        "rows": _tensor(places, torch.int64),
        "kinds": _tensor(kinds, torch.uint8),
        "numbers": _tensor(numbers, torch.float64),
        "texts": _tensor(texts, torch.uint8),
        "text_starts": _tensor(text_starts, torch.int64),
    }


def _sequences(row: Any) -> tuple[EncodedRow, ...]:
    if isinstance(row, EncodedPair):
        return (row.chosen, row.rejected)
    if isinstance(row, EncodedRanking):
        return row.rows
    if isinstance(row, EncodedAnswer):
        return (row.row, row.mismatched)
    if isinstance(row, EncodedPrompt):
        return (EncodedRow(row.input_ids, [False] * len(row.input_ids)),)
    return (row,)


def _tensor(values: array[Any] | bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(values, dtype=dtype) if len(values) else torch.empty(0, dtype=dtype)
