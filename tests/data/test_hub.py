"""Names of hubs: who is asked for what, and what is said where nobody answers."""

import json
import sys
from types import SimpleNamespace

import pytest

from posttrain.config import DataConfig
from posttrain.data import hub
from posttrain.data.datasets import load_dataset
from posttrain.data.hub import HubSource
from posttrain.data.sources import resolve_dataset, rows_of
from posttrain.errors import UserError

ROWS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(4)]


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for the hub's library; what it was asked for."""
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(path, **options):
        calls.append({"path": path, **options})
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_answers", lambda repo: True)
    return calls


def index(folder, **entries):
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")


def test_a_hub_name_is_asked_for_and_its_rows_train(asked, tokenizer, tmp_path):
    data = DataConfig(dataset=("owner/name:main",), dataset_dir=str(tmp_path), split="train[:4]", cutoff_len=64)
    splits = load_dataset(data, tokenizer, "sft")
    assert [tokenizer.decode(row.input_ids).split("\n")[1][:2] for row in splits.train] == ["q0", "q1", "q2", "q3"]
    assert asked == [{"path": "owner/name", "name": "main", "data_dir": None, "split": "train[:4]", "streaming": False}]


def test_an_entry_names_hub_subset_split_and_folder(asked, tmp_path):
    entry = {"hf_hub_url": "o/n", "subset": "zh", "split": "test", "folder": "part", "columns": {"prompt": "q"}}
    index(tmp_path, mine={**entry, "num_samples": 2})
    spec = resolve_dataset("mine", tmp_path)
    assert spec.hub == HubSource(repo="o/n", subset="zh", folder="part")
    assert (spec.num_samples, spec.layout.columns) == (2, {"prompt": "q"})
    assert list(rows_of(spec, "train"))[1] == ("o/n, subset zh, test row 2", ROWS[1])
    assert asked == [{"path": "o/n", "name": "zh", "data_dir": "part", "split": "test", "streaming": False}]


def test_a_file_wins_over_a_hub_and_an_index_over_both(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    assert resolve_dataset("owner/name", tmp_path).path.name == "name"
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    index(tmp_path, **{"owner/name": {"file_name": "mine.json", "hf_hub_url": "o/n"}})
    assert resolve_dataset("owner/name", tmp_path).path.name == "mine.json"
    assert asked == []


def test_every_name_is_of_the_hub_where_the_folder_is_online():
    assert resolve_dataset("squad", "ONLINE").hub == HubSource(repo="squad")


def test_modelscope_is_asked_where_only_it_is_named(monkeypatch, tmp_path):
    calls = []

    class Loader:
        @staticmethod
        def load(**options):
            calls.append(options)
            return ROWS

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(MsDataset=Loader))
    index(tmp_path, mine={"ms_hub_url": "o/n", "subset": "zh"})
    assert [row for _, row in rows_of(resolve_dataset("mine", tmp_path))] == ROWS
    assert (calls[0]["dataset_name"], calls[0]["subset_name"], calls[0]["split"]) == ("o/n", "zh", "train")


def test_a_folder_of_an_entry_may_have_subsets(tmp_path):
    (tmp_path / "many" / "zh").mkdir(parents=True)
    (tmp_path / "many" / "zh" / "train.json").write_text(json.dumps(ROWS))
    index(tmp_path, mine={"file_name": "many", "subset": "zh"}, other={"file_name": "many", "subset": "zg"})
    assert len(list(rows_of(resolve_dataset("mine", tmp_path)))) == 4
    with pytest.raises(UserError, match=r"dataset 'other': subset: folder: no such file.*Near names there: zh"):
        resolve_dataset("other", tmp_path)


def test_no_answer_is_said_at_once_with_the_ways_out(monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        list(rows_of(resolve_dataset("owner/name", tmp_path)))
    said = str(caught.value)
    assert said.startswith("dataset owner/name: no file or folder of that name, and the Hugging Face hub does not give")
    assert "HF_ENDPOINT" in said
    assert "\n" not in said


def test_no_library_is_said_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'datasets library is needed: pip install "posttrain\[data\]"'):
        list(rows_of(resolve_dataset("owner/name", tmp_path)))
    index(tmp_path, mine={"ms_hub_url": "o/n"})
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="modelscope library is needed: pip install modelscope"):
        list(rows_of(resolve_dataset("mine", tmp_path)))


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        (":nosub", "train", ["subset nosub", "'nosub' not found", ":SUBSET"]),
        ("", "dev", ["split: dev", "Unknown split", "['train']"]),
    ],
)
def test_a_missing_subset_or_split_is_said_by_name(monkeypatch, tmp_path, name, split, words):
    """The library itself, given a folder in place of a repository."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    monkeypatch.setattr(hub, "_answers", lambda repo: True)
    source = HubSource(repo=str(tmp_path), subset=name[1:] or None)
    with pytest.raises(UserError) as caught:
        list(hub.rows_of_hub(source, split))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("data/typo", "data", ["data/typo", "no such file"]),
        ("owner/name.jsonl", "data", ["owner/name.jsonl", "no such file"]),
        ("mine", "REMOTE:owner/index", ["REMOTE:owner/index", "download its dataset_info.json"]),
    ],
)
def test_what_can_only_be_a_file_is_not_asked_for(tmp_path, monkeypatch, asked, name, folder, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError) as caught:
        resolve_dataset(name, folder)
    for word in words:
        assert word in str(caught.value)
    assert asked == []


def test_a_malformed_entry_is_named(tmp_path):
    index(tmp_path, mine={"hf_hub_url": "o/n", "subset": ["a"]})
    with pytest.raises(UserError, match=r"dataset 'mine': subset must be text, found \['a'\]"):
        resolve_dataset("mine", tmp_path)
