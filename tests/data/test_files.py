"""Packed and columnar files, and folders of files of several kinds."""

import gzip
import json
from datetime import date
from decimal import Decimal

import pytest

from posttrain.config import DataConfig
from posttrain.data.datasets import load_dataset
from posttrain.data.sources import iter_rows, read_rows
from posttrain.errors import UserError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ipc = pytest.importorskip("pyarrow.ipc")
zstandard = pytest.importorskip("zstandard")

ROWS = [
    {"instruction": f"q{i}", "output": f"答{i}", "history": [["a", "b"]] if i % 2 else None, "n": i}
    for i in range(2500)
]


def write_as(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    if name.endswith(".parquet"):
        parquet.write_table(table, path, row_group_size=700)
    elif name.endswith(".zst"):  # of two frames, as several writers leave it
        half = len(text) // 2
        packer = zstandard.ZstdCompressor(write_checksum=True)
        path.write_bytes(packer.compress(text[:half]) + packer.compress(text[half:]))
    elif name.lower().endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif name.endswith((".arrow", ".feather")):
        new = ipc.new_file if name.endswith(".feather") else ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=1100)
    else:
        path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.jsonl.zst", "a.json.zst", "a.JSONL.GZ"])
def test_the_same_rows_from_every_kind_of_file(tmp_path, name):
    assert read_rows(write_as(tmp_path, name, ROWS)) == ROWS


def test_an_arrow_file_in_the_file_format_may_be_called_arrow(tmp_path):
    path = write_as(tmp_path, "a.feather", ROWS[:3]).rename(tmp_path / "a.arrow")
    assert read_rows(path) == ROWS[:3]


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    path = write_as(tmp_path, "a.jsonl", ROWS[:2])
    path.write_bytes(path.read_bytes() + b"\n{broken")
    rows = iter_rows(path)
    assert [next(rows), next(rows)] == [(f"{path}, row 1", ROWS[0]), (f"{path}, row 2", ROWS[1])]
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: malformed JSON"):
        next(rows)


def test_values_that_json_has_no_type_for_are_text(tmp_path):
    table = pa.table(
        {
            "day": pa.array([date(2024, 5, 1)]),
            "price": pa.array([Decimal("1.50")]),
            "raw": pa.array([b"\x00\xff"]),
            "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "nested": pa.array([{"at": [date(2024, 5, 2)]}]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert row == {
        **{"day": "2024-05-01", "price": "1.50", "raw": "AP8=", "pairs": [["k", 1]]},
        "nested": {"at": ["2024-05-02"]},
    }


def test_a_folder_as_the_hub_lays_it_out(tmp_path):
    write_as(tmp_path, "data/train-00000-of-00002.parquet", ROWS[:2])
    write_as(tmp_path, "data/train-00001-of-00002.jsonl.zst", ROWS[2:4])
    write_as(tmp_path, "data/test-00000-of-00001.parquet", ROWS[4:5])
    (tmp_path / "README.txt").write_text("About these files.")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "requirements.txt").write_text("torch")
    write_as(tmp_path, ".cache/train.jsonl", ROWS[7:8])
    assert read_rows(tmp_path) == ROWS[:4]
    assert read_rows(tmp_path, split="test") == ROWS[4:5]
    places = [where for where, _ in iter_rows(tmp_path)]
    assert places[2] == f"{tmp_path / 'data' / 'train-00001-of-00002.jsonl.zst'}, row 1"


def test_data_may_be_called_like_what_stands_beside_data_elsewhere(tmp_path):
    write_as(tmp_path, "source-2024.jsonl", ROWS[:1])
    write_as(tmp_path, "source/notice.jsonl", ROWS[1:2])
    assert sorted(map(str, read_rows(tmp_path))) == sorted(map(str, ROWS[:2]))


def test_folders_may_be_called_after_splits_and_a_split_is_a_whole_word(tmp_path):
    write_as(tmp_path, "train/part-0.jsonl", ROWS[:1])
    write_as(tmp_path, "train/part-1.arrow", ROWS[1:2])
    write_as(tmp_path, "validation/part-0.jsonl", ROWS[2:3])
    write_as(tmp_path, "trainer_notes.jsonl", ROWS[3:4])
    assert read_rows(tmp_path) == ROWS[:2]
    assert read_rows(tmp_path, split="validation") == ROWS[2:3]


def test_what_save_to_disk_leaves_is_read_as_it_lists_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(ROWS[:30])
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    write_as(tmp_path / "one", "cache-1234.arrow", ROWS[:5])  # what `map` leaves beside them
    assert read_rows(tmp_path / "one") == ROWS[:30]
    both = datasets.DatasetDict({"train": whole.select(range(20)), "test": whole.select(range(20, 30))})
    both.save_to_disk(tmp_path / "both")
    assert read_rows(tmp_path / "both") == ROWS[:20]
    assert read_rows(tmp_path / "both", split="test") == ROWS[20:30]


def test_a_parquet_folder_trains_like_the_same_rows_in_json(tmp_path, tokenizer):
    found = []
    for name in ("a.jsonl", "folder/train-00000-of-00001.parquet"):
        path = write_as(tmp_path, name, ROWS[:20])
        data = DataConfig(dataset=(str(path if name == "a.jsonl" else path.parent),), cutoff_len=64)
        found.append(load_dataset(data, tokenizer, "sft").train)
    assert found[0] == found[1]


def damaged(path, count=40, at=None):
    raw = bytearray(path.read_bytes())
    if at is None:
        raw = raw[:-count]
    else:
        raw[at : at + count] = b"\xa5" * count
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("a.parquet", None, ["a.parquet", "not a whole Parquet file"]),
        ("a.parquet", 4, ["a.parquet", "not a whole Parquet file"]),
        ("a.arrow", 0, ["a.arrow", "not a whole Arrow file"]),
        ("a.feather", None, ["a.feather", "not a whole Arrow file"]),
        ("a.jsonl.zst", None, ["a.jsonl.zst", "ends in the middle"]),
        ("a.jsonl.zst", 200, ["a.jsonl.zst", "cannot be read"]),
        ("a.jsonl.gz", None, ["a.jsonl.gz", "cannot be read", "end-of-stream"]),
        ("a.jsonl", 90, ["a.jsonl, line 2", "UTF-8"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, at, words):
    path = damaged(write_as(tmp_path, name, ROWS), at=at)
    with pytest.raises(UserError) as caught:
        read_rows(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_behind_the_first_rows_names_the_row(tmp_path):
    path = write_as(tmp_path, "a.parquet", ROWS)
    group = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    with pytest.raises(UserError, match=r"a\.parquet, after row \d+: not a whole Parquet file"):
        read_rows(damaged(path, at=group.data_page_offset))


@pytest.mark.parametrize(
    ("name", "library", "text"),
    [("a.parquet", "pyarrow", "pyarrow"), ("a.arrow", "pyarrow", "pyarrow"), ("a.jsonl.zst", "zstandard", "zstandard")],
)
def test_a_missing_library_is_asked_for_by_command(tmp_path, monkeypatch, name, library, text):
    path = write_as(tmp_path, name, ROWS[:2])
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=rf'{text} library: pip install "posttrain\[data\]"'):
        read_rows(path)


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (("readme.json", "notes.md"), "train", ["no data files", ".parquet"]),
        (("test.jsonl", "dev.jsonl"), "train", ["no split 'train'", "dev, test", "`split`"]),
        (("a.parquet.gz",), "train", ["a.parquet.gz", "unpack"]),
    ],
)
def test_a_folder_without_the_asked_rows_says_what_it_has(tmp_path, names, split, words):
    for name in names:
        write_as(tmp_path, name, ROWS[:1])
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path, split=split)
    for word in words:
        assert word in str(caught.value)
