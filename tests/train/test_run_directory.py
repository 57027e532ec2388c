import errno
import json
import math
import os

import pytest
import torch
from safetensors import SafetensorError

from posttrain.engine import state
from posttrain.errors import RunError, UserError
from posttrain.train.checkpoints import STATE_FILES
from posttrain.train.run_directory import RunDirectory


def write_weights(folder):
    (folder / "weights.bin").write_bytes(b"whole")


def write_state(folder):
    for name in STATE_FILES:
        (folder / name).write_bytes(b"whole")


def write_both(folder):
    write_state(folder)
    write_weights(folder)


def full_disk(folder):
    (folder / "weights.bin").write_bytes(b"ha")
    raise OSError(errno.ENOSPC, "No space left on device")


def finish(run, steps=8):
    run.write_json("train_results.json", {"total_steps": steps})
    run.write_json("all_results.json", {"total_steps": steps})


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "out" / "run")


def test_create_makes_the_folder_and_leaves_it_empty(run):
    assert run.path.is_dir()
    assert contents(run.path) == []
    assert run.notice is None


def test_check_touches_nothing(tmp_path):
    RunDirectory.check(tmp_path / "out" / "run")
    assert contents(tmp_path) == []


def test_a_file_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="is a file"):
            RunDirectory.create(path)


def test_a_folder_that_cannot_be_written_to_is_a_user_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match=r"output_dir .*run cannot be written to: Permission denied"):
        RunDirectory.create(tmp_path / "run")


def test_a_finished_run_is_neither_replaced_nor_continued_unasked(run):
    assert run.finished_steps is None
    finish(run)
    assert run.finished
    assert run.finished_steps == 8
    with pytest.raises(UserError, match=r"finished run.*overwrite_output_dir: true"):
        RunDirectory.create(run.path)
    assert RunDirectory.create(run.path, resume=True).finished


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"total_steps": null}'])
def test_results_that_say_no_steps_are_no_finish(run, text):
    finish(run)
    (run.path / "all_results.json").write_text(text, encoding="utf-8")
    assert not run.finished


def test_weights_of_somebody_else_are_not_replaced_unasked(run):
    (run.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="already holds a model"):
        RunDirectory.create(run.path)


def test_an_interrupted_run_is_continued_with_a_notice_or_refused(run):
    run.save_checkpoint(3, write_state)
    (run.path / "model.safetensors").write_bytes(b"x")
    assert "continuing from" in RunDirectory.create(run.path).notice
    with pytest.raises(UserError, match="checkpoint-3"):
        RunDirectory.create(run.path, resume=False)


def test_resuming_where_there_is_nothing_says_so(tmp_path):
    run = RunDirectory.create(tmp_path / "run", resume=True)
    assert "starting afresh" in run.notice
    assert run.resume_checkpoint(True) is None


def test_overwrite_removes_the_earlier_run_and_nothing_else(run):
    run.save_checkpoint(3, write_weights)
    finish(run)
    run.append_jsonl("trainer_log.jsonl", {"current_steps": 3})
    (run.path / "runs").mkdir()
    (run.path / "runs" / "events").write_bytes(b"x")
    (run.path / "training_loss.png").write_bytes(b"x")
    (run.path / "adapter_model.safetensors").write_bytes(b"x")
    (run.path / "my notes.txt").write_bytes(b"x")
    again = RunDirectory.create(run.path, overwrite=True)
    assert contents(run.path) == ["adapter_model.safetensors", "my notes.txt"]
    assert not again.finished


def test_overwrite_spares_what_is_being_resumed_and_what_the_run_reads(run):
    checkpoint = run.save_checkpoint(3, write_state)
    assert RunDirectory.create(run.path, overwrite=True, resume=True).latest_checkpoint() == checkpoint
    with pytest.raises(UserError, match=r"checkpoint-3.* would remove"):
        RunDirectory.create(run.path, overwrite=True, reads=[checkpoint])
    assert checkpoint.is_dir()
    RunDirectory.create(run.path, overwrite=True, reads=[run.path])


def test_checkpoints_are_sorted_by_step_and_only_whole_ones_count(run):
    for step in (100, 20, 3):
        (run.path / f"checkpoint-{step}").mkdir()
    (run.path / ".tmp-checkpoint-200").mkdir()
    (run.path / "checkpoint-best").mkdir()
    (run.path / "checkpoint-300").write_bytes(b"a file")
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert run.latest_checkpoint() is None
    write_state(run.path / "checkpoint-20")
    assert run.latest_checkpoint().name == "checkpoint-20"


def test_resume_from_a_named_checkpoint(run):
    first = run.save_checkpoint(1, write_state)
    second = run.save_checkpoint(2, write_state)
    assert run.resume_checkpoint(None) == run.resume_checkpoint(True) == second
    assert run.resume_checkpoint("checkpoint-1") == run.resume_checkpoint(str(first)) == first
    assert run.resume_checkpoint(False) is None
    for resume in (run.resume_checkpoint, lambda named: RunDirectory.check(run.path, resume=named)):
        with pytest.raises(UserError, match="no folder checkpoint-7"):
            resume("checkpoint-7")
        (run.path / "foreign").mkdir(exist_ok=True)
        (run.path / "foreign" / "trainer_state.json").write_text("{}", encoding="utf-8")
        with pytest.raises(UserError, match=r"foreign is no checkpoint .*it has no trainer_weights.safetensors"):
            resume(str(run.path / "foreign"))


def test_the_files_of_a_state_are_those_that_the_engine_writes():
    assert set(STATE_FILES) == {state.WEIGHTS, state.OPTIMIZER, state.COUNTERS}


@pytest.mark.parametrize("resume", [None, True, False])
def test_checkpoints_of_the_model_only_are_no_interrupted_run(run, resume):
    run.save_checkpoint(3, write_weights)
    again = RunDirectory.create(run.path, resume=resume)
    assert "hold the model only" in again.notice
    assert "starting afresh" in again.notice
    assert again.resume_checkpoint(resume) is None


def test_only_a_checkpoint_that_can_be_continued_is_continued(run):
    run.save_checkpoint(2, write_state)
    run.save_checkpoint(3, write_weights)
    assert run.resume_checkpoint(None).name == "checkpoint-2"


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (2, 1, [1, 4]), (1, 2, [2, 4]), (1, 4, [4]), (3, 1, [1, 3, 4])],
)
def test_the_oldest_beyond_the_limit_go_but_never_the_best_nor_the_latest(run, limit, keep, left):
    for step in (1, 2, 3, 4):
        run.save_checkpoint(step, write_weights, total_limit=limit, keep=keep)
    assert [path.name for path in run.checkpoints()] == [f"checkpoint-{step}" for step in left]
    assert not list(run.path.glob(".*"))


def test_going_back_removes_the_course_that_was_left(run):
    for step in (2, 4, 6):
        run.save_checkpoint(step, write_weights)
    run.save_checkpoint(3, write_weights)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-3"]


def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(run):
    good = run.save_checkpoint(2, write_both, total_limit=1)
    with pytest.raises(RunError, match=r"checkpoint-4 .*No space left on device.*last good checkpoint is checkpoint-2"):
        run.save_checkpoint(4, full_disk, total_limit=1)
    assert [path.name for path in run.path.iterdir()] == ["checkpoint-2"]
    assert (good / "weights.bin").read_bytes() == b"whole"


def test_a_full_disk_before_any_checkpoint_says_so(run):
    with pytest.raises(RunError, match="No checkpoint had been written before"):
        run.save_checkpoint(1, full_disk)


def test_a_full_disk_after_checkpoints_of_the_model_only_says_so(run):
    run.save_checkpoint(2, write_weights)
    with pytest.raises(RunError, match=r"checkpoint-2, which holds the model only"):
        run.save_checkpoint(4, full_disk)


KINDS = {
    "lora": ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
    "rm": ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "value_head.safetensors"),
    "full": ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
    "shards": ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"),
}


def save_kind(run, kind, **options):
    def write(folder):
        for name in KINDS[kind]:
            (folder / name).write_text(kind, encoding="utf-8")

    run.save_model(write, **options)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_model_leaves_nothing_of_another_kind(run, first, second):
    (run.path / "notes.txt").write_text("mine", encoding="utf-8")
    (run.path / "model-notes.safetensors").write_text("mine", encoding="utf-8")
    save_kind(run, first)
    save_kind(run, second)
    assert contents(run.path) == sorted([*KINDS[second], "notes.txt", "model-notes.safetensors"])
    assert {(run.path / name).read_text(encoding="utf-8") for name in KINDS[second]} == {second}


def test_a_model_that_the_run_reads_stays_beside_the_adapter(run):
    save_kind(run, "full")
    save_kind(run, "lora", reads=["elsewhere", str(run.path)])
    assert set(contents(run.path)) == {*KINDS["full"], *KINDS["lora"]}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # tokenizers'
    ],
)
def test_a_full_disk_at_the_end_leaves_the_earlier_model_whole(run, error):
    run.save_checkpoint(2, write_state)
    save_kind(run, "lora")

    def write(folder):
        (folder / "adapter_model.safetensors").write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(RunError, match=r"the model in .*No space left on device.*last good checkpoint is checkpoint-2"):
        run.save_model(write)
    assert (run.path / "adapter_model.safetensors").read_text(encoding="utf-8") == "lora"
    assert not list(run.path.glob(".tmp*"))


def test_a_fault_of_our_own_is_not_blamed_on_the_disk(run):
    def faulty(folder):
        raise KeyError("name")

    with pytest.raises(KeyError):
        run.save_model(faulty)


def test_safetensors_failing_is_a_run_error(run):
    from safetensors.torch import save_file

    with pytest.raises(RunError, match="could not write checkpoint-1"):
        run.save_checkpoint(1, lambda folder: save_file({"a": torch.zeros(1)}, folder / "absent" / "a.safetensors"))


def test_an_interrupt_while_writing_leaves_nothing(run):
    def interrupted(folder):
        write_weights(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(1, interrupted)
    assert contents(run.path) == []


def test_writing_a_step_again_replaces_it(run):
    run.save_checkpoint(1, write_weights)
    path = run.save_checkpoint(1, lambda folder: (folder / "other.bin").write_bytes(b"new"))
    assert contents(run.path) == ["checkpoint-1", "checkpoint-1/other.bin"]
    assert [path] == run.checkpoints()


def test_what_a_killed_process_left_is_put_right_at_the_start(run):
    run.save_checkpoint(1, write_weights)
    (run.path / ".tmp-checkpoint-2").mkdir()
    (run.path / ".tmp-checkpoint-2" / "half.bin").write_bytes(b"ha")
    (run.path / ".tmp-all_results.json").write_bytes(b"{")
    (run.path / "checkpoint-1").rename(run.path / ".old-checkpoint-1")
    again = RunDirectory.create(run.path, resume=True)
    assert contents(run.path) == ["checkpoint-1", "checkpoint-1/weights.bin"]
    assert [path.name for path in again.checkpoints()] == ["checkpoint-1"]


def test_the_name_appears_only_when_every_byte_is_down(run, monkeypatch):
    events = []
    flush, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), flush(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"rename {os.path.basename(b)}"), rename(a, b)))
    run.save_checkpoint(1, write_weights)
    assert events.index("rename checkpoint-1") >= 2
    assert events[0] == "fsync"
    assert events[-1] == "fsync"


def test_json_is_whole_readable_and_strict(run):
    path = run.write_json("a.json", {"表": torch.tensor(0.5), "nan": math.nan, "list": (1, math.inf), "path": run.path})
    text = path.read_text(encoding="utf-8")
    assert "表" in text
    assert json.loads(text) == {"表": 0.5, "nan": None, "list": [1, None], "path": str(run.path)}


def test_json_that_cannot_be_written_leaves_the_old_one(run, monkeypatch):
    run.write_json("a.json", 1)
    monkeypatch.setattr(os, "fsync", lambda _: full_disk(run.path))
    with pytest.raises(RunError, match=r"could not write a.json"):
        run.write_json("a.json", 2)
    assert json.loads((run.path / "a.json").read_text(encoding="utf-8")) == 1
    assert not list(run.path.glob(".tmp*"))


def test_json_comes_back_or_says_what_is_wrong(run):
    run.write_json("a.json", {"a": 1})
    assert run.read_json("a.json") == {"a": 1}
    (run.path / "b.json").write_text("{", encoding="utf-8")
    for name in ("b.json", "absent.json"):
        with pytest.raises(UserError, match=name):
            run.read_json(name)


def test_log_lines_come_back_with_any_text(run):
    rows = [{"current_steps": 1, "text": "一\u2028二\n三"}, {"current_steps": 2}]
    run.append_jsonl("completions.jsonl", rows[0])
    run.append_jsonl("completions.jsonl", rows[1])
    assert run.read_jsonl("completions.jsonl") == rows
    assert run.read_jsonl("absent.jsonl") == []


def test_truncating_drops_later_lines_and_one_cut_short(run):
    run.append_jsonl("trainer_log.jsonl", *({"current_steps": step} for step in (1, 2, 3)))
    run.append_jsonl("completions.jsonl", *({"step": step, "completion": "甲"} for step in (2, 2, 3)))
    with (run.path / "trainer_log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"current_steps": 2, "lo')
    run.truncate_log(2)
    assert run.read_jsonl("trainer_log.jsonl") == [{"current_steps": 1}, {"current_steps": 2}]
    assert run.read_jsonl("completions.jsonl") == [{"step": 2, "completion": "甲"}] * 2
    run.append_jsonl("trainer_log.jsonl", {"current_steps": 3})
    assert len((run.path / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_an_evaluation_that_will_be_made_again_goes_from_the_log(run):
    rows = [{"current_steps": 2, "eval_loss": 1.0}, {"current_steps": 3, "loss": 1.0}]
    run.append_jsonl("trainer_log.jsonl", *rows, {"current_steps": 3, "eval_loss": 1.0})
    run.truncate_log(3, evaluated=False)
    assert run.read_jsonl("trainer_log.jsonl") == rows


def test_a_fresh_start_begins_with_empty_logs(run):
    run.append_jsonl("trainer_log.jsonl", {"current_steps": 0, "eval_loss": 1.0})
    run.clear_logs()
    run.clear_logs()
    assert contents(run.path) == []
