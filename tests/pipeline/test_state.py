import dataclasses

import pytest

from posttrain.config import PipelineStage
from posttrain.errors import RunError
from posttrain.pipeline.state import FILE, Record, State, digest, reads, stage_digest


def stage(kind="sft", **values):
    return PipelineStage(name="one", kind=kind, values={"output_dir": "out/one", "learning_rate": 1e-4, **values})


def test_what_changes_the_result_changes_the_digest():
    first = stage_digest(stage(), {"data": "a"})
    assert stage_digest(stage(), {"data": "a"}) == first
    assert stage_digest(stage(learning_rate=2e-4), {"data": "a"}) != first
    assert stage_digest(stage(), {"data": "b"}) != first
    assert stage_digest(stage(kind="pt"), {"data": "a"}) != first
    for key, value in {"overwrite_output_dir": True, "resume_from_checkpoint": True, "disable_tqdm": True}.items():
        assert stage_digest(stage(**{key: value}), {"data": "a"}) == first


def test_the_order_of_keys_does_not_count():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("out/sft", True),
        ("./out/sft/checkpoint-3", True),
        (["pt", "out/sft"], True),
        (["base", "sft=out/sft"], True),
        ("both=out/pt+out/sft", True),
        ("out/sft2", False),
        ("out", False),
        (3, False),
    ],
)
def test_a_stage_reads_what_its_values_name(value, expected):
    assert reads(stage(adapter_name_or_path=value), "out/sft") is expected


def test_windows_paths_are_paths():
    assert reads(stage(adapter_name_or_path="E:\\runs\\sft\\best"), "E:\\runs\\sft")
    assert not reads(stage(adapter_name_or_path="E:\\runs\\sft2"), "E:\\runs\\sft")


def test_its_own_output_is_not_an_input():
    assert not reads(stage(), "out/one")
    assert not reads(stage(), "out")


def test_records_come_back(tmp_path):
    record = Record(digest="d", finished=True, seconds=1.5, peak_memory_bytes=7, found=3)
    State(tmp_path).put("sft", record)
    again = State(tmp_path)
    assert again.records == {"sft": record}
    again.put("ppo", Record(digest="e"))
    assert State(tmp_path).records["sft"] == record
    assert State(tmp_path).records["ppo"].run != record.run


@pytest.mark.parametrize("text", ["{", "[]", '{"records": {"sft": {"digest": 1, "color": 2}}}', '{"records": 3}'])
def test_a_damaged_file_counts_as_none(tmp_path, text):
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    assert State(tmp_path).records == {}


def test_a_folder_that_is_gone_is_one_clear_message(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        State(tmp_path / "gone").put("sft", dataclasses.replace(Record(digest="d")))
