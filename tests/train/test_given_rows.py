"""Rows in memory: what counts as rows, and the file that they are kept in."""

from __future__ import annotations

import datetime
import json

import pytest
import torch

from posttrain.errors import UserError
from posttrain.train.given_rows import GivenRows, is_named


def kept(data, path, **options):
    rows = GivenRows(data, "train_dataset")
    assert rows.keep(path, continues=False, **options) == len(path.read_text("utf-8").splitlines())
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_lists_columns_and_generators(tmp_path) -> None:
    rows = [{"text": "苹果"}, {"text": "pear", "more": [1, {"a": None}]}]
    assert kept(rows, tmp_path / "inputs" / "a.jsonl") == rows
    assert kept({"text": ["a", "b"], "n": (1, 2)}, tmp_path / "b.jsonl") == [
        {"text": "a", "n": 1},
        {"text": "b", "n": 2},
    ]
    assert kept((row for row in rows), tmp_path / "c.jsonl") == rows
    assert not list(tmp_path.rglob("*.partial"))


def test_a_dataset_of_the_datasets_library(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list([{"text": "a", "when": datetime.date(2024, 5, 1)}, {"text": "b", "when": None}])
    assert kept(found, tmp_path / "a.jsonl") == [{"text": "a", "when": "2024-05-01"}, {"text": "b", "when": None}]
    with pytest.raises(UserError, match=r"is a mapping with train, test: give one split of it \(train_dataset=data"):
        GivenRows(datasets.DatasetDict({"train": found, "test": found}), "train_dataset")
    streamed = found.to_iterable_dataset()
    assert [row["text"] for row in kept(streamed, tmp_path / "b.jsonl")] == ["a", "b"]


def test_numbers_of_other_libraries_become_plain_ones(tmp_path) -> None:
    numpy = pytest.importorskip("numpy")
    rows = [{"a": numpy.float32(0.5), "b": numpy.arange(2), "c": torch.tensor([1.5])}]
    assert kept(rows, tmp_path / "a.jsonl") == [{"a": 0.5, "b": [0, 1], "c": [1.5]}]


def test_columns_fill_what_a_row_lacks() -> None:
    rows = GivenRows([{"query": "a"}, {"query": "b", "n": 2}], "train_dataset")
    assert rows.columns() == {"query": ["a", "b"], "n": [None, 2]}


def test_the_same_rows_continue_a_run_and_others_do_not(tmp_path) -> None:
    path = tmp_path / "inputs" / "train.jsonl"
    first = GivenRows([{"text": "a"}], "train_dataset")
    first.keep(path, continues=True)
    first.keep(path, continues=True)
    with pytest.raises(UserError, match="train_dataset holds other rows"):
        GivenRows([{"text": "b"}], "train_dataset").keep(path, continues=True)
    assert json.loads(path.read_text("utf-8")) == {"text": "a"}
    assert [file.name for file in path.parent.iterdir()] == ["train.jsonl"]
    GivenRows([{"text": "b"}], "train_dataset").keep(path, continues=False)
    assert json.loads(path.read_text("utf-8")) == {"text": "b"}


def test_a_later_row_that_is_none_is_named(tmp_path) -> None:
    rows = GivenRows([{"text": "a"}, "b"], "eval_dataset")
    with pytest.raises(UserError, match=r"eval_dataset, row 2: expected a mapping .* found str; texts are rows"):
        rows.keep(tmp_path / "a.jsonl", continues=False)


@pytest.mark.parametrize(
    ("data", "named"),
    [("a.jsonl", True), (["a", "b"], True), (("a",), True), ([], False), ([{"text": "a"}], False), (None, False)],
)
def test_names_and_rows_are_told_apart(data, named) -> None:
    assert is_named(data) is named
