import json
import os

import pytest

from posttrain.config import PipelineStage
from posttrain.pipeline.inputs import outside_inputs


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.json").write_text("[]", encoding="utf-8")
    info = {"named": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    for name in ("adapter", "out/sft"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"1")
        (tmp_path / name / "notes.txt").write_bytes(b"1")
    return tmp_path


def found(**values):
    stage = PipelineStage(name="one", kind="sft", values={"output_dir": "out/one", **values})
    return outside_inputs(stage, ["out/sft", "out/data"])


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ({"dataset": ["data/rows.json"]}, "data/rows.json"),
        ({"dataset": ["named"]}, "data/rows.json"),
        ({"eval_dataset": ["rows"], "dataset_dir": "data"}, "data/rows.json"),
        ({"model_name_or_path": "adapter"}, "adapter/adapter_model.safetensors"),
        ({"adapter_name_or_path": ["adapter"]}, "adapter/adapter_model.safetensors"),
        ({"variants": ["base", "two=out/sft+adapter"]}, "adapter/adapter_model.safetensors"),
        ({"database_dir": "data"}, "data/rows.json"),
    ],
)
def test_a_file_that_changes_its_size_or_its_time_is_noticed(place, values, file):
    before = found(**values)
    assert before == found(**values) != {}
    os.utime(place / file, ns=(0, 10**18))
    touched = found(**values)
    assert touched != before
    (place / file).write_bytes(b"longer")
    os.utime(place / file, ns=(0, 10**18))
    assert found(**values) not in (before, touched)


def test_a_changed_entry_is_noticed_and_another_one_is_not(place):
    path = place / "data" / "dataset_info.json"
    before, info = found(dataset=["named"]), json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**info, "other": {"file_name": "x.json"}}), encoding="utf-8")
    assert found(dataset=["named"]) == before
    info["named"]["columns"]["prompt"] = "question"
    path.write_text(json.dumps(info), encoding="utf-8")
    assert found(dataset=["named"]) != before


@pytest.mark.parametrize(
    "values",
    [
        {"adapter_name_or_path": ["out/sft"]},
        {"adapter_name_or_path": ["./out/sft"]},
        {"output_dir": "adapter"},
        {"dataset": ["nowhere.json"], "model_name_or_path": "smollm2-135m-instruct"},
        {"dataset": ["rows.json"], "dataset_dir": "out/data"},
        {"template": "adapter", "learning_rate": 1e-4},
    ],
)
def test_what_the_pipeline_writes_and_what_is_not_there_does_not_count(place, values):
    (place / "out" / "data").mkdir()
    (place / "out" / "data" / "rows.json").write_text("[]", encoding="utf-8")
    assert found(**values) == {}


def test_of_a_model_folder_only_the_model_counts(place):
    before = found(model_name_or_path="adapter")
    (place / "adapter" / "notes.txt").write_bytes(b"more")
    assert found(model_name_or_path="adapter") == before


@pytest.mark.parametrize("change", [{"split": "test"}, {"hf_hub_url": "me/other"}, {"subset": "zh"}])
def test_another_split_or_place_on_a_hub_is_noticed(place, change):
    path = place / "data" / "dataset_info.json"
    entry = {"hf_hub_url": "me/rows"} if "split" not in change else {"file_name": "rows.json"}
    path.write_text(json.dumps({"named": entry}), encoding="utf-8")
    before = found(dataset=["named"])
    path.write_text(json.dumps({"named": {**entry, **change}}), encoding="utf-8")
    assert found(dataset=["named"]) != before != {}


def test_rows_that_the_stage_keeps_itself_are_no_input(place):
    before = found(dataset=["named"], tokenized_path="kept")
    (place / "kept").mkdir()
    (place / "kept" / "encoded.safetensors").write_bytes(b"1")
    assert found(dataset=["named"], tokenized_path="kept") == before
