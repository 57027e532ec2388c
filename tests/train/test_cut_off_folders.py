"""What a run directory makes of states that only a process cut off at a bad moment, or a bad disk, leaves behind."""

from __future__ import annotations

import pytest

from posttrain.errors import UserError
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


def finish(run, steps=8):
    run.write_json("train_results.json", {"total_steps": steps})
    run.write_json("all_results.json", {"total_steps": steps})


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def test_a_longer_run_cut_off_over_a_finished_one_is_not_finished(run):
    """Its results were written, the mark of the end is still that of the shorter one."""
    finish(run, steps=8)
    run.write_json("train_results.json", {"total_steps": 16})
    assert run.finished_steps == 8


def test_a_run_without_checkpoints_cut_off_at_its_end_starts_afresh(run):
    (run.path / "config.yaml").write_text("stage: sft", encoding="utf-8")
    run.append_jsonl("trainer_log.jsonl", {"current_steps": 1})
    (run.path / "adapter_model.safetensors").write_bytes(b"x")
    assert "starting afresh" in RunDirectory.create(run.path).notice
    finish(run)
    with pytest.raises(UserError, match="finished run"):
        RunDirectory.create(run.path)
    (run.path / "all_results.json").write_text('{"train_loss": 1.0}', encoding="utf-8")  # another program's
    with pytest.raises(UserError, match="already holds a model"):
        RunDirectory.create(run.path)


def test_overwriting_leaves_no_half_of_a_checkpoint_behind(run, monkeypatch):
    run.save_checkpoint(1, write_both)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.create(run.path, overwrite=True)
    assert run.checkpoints() == []


def test_the_way_around_a_damaged_checkpoint_is_the_one_before_it(run):
    for step in (2, 4, 6):
        run.save_checkpoint(step, write_state)
    run.save_checkpoint(8, write_weights)
    assert f"resume_from_checkpoint: {run.path / 'checkpoint-4'}, or" in run.way_around(run.path / "checkpoint-6")
    assert "no older checkpoint" in run.way_around(run.path / "checkpoint-2")


def test_a_checkpoint_that_came_to_stand_but_not_to_prune_is_pruned_after(run):
    for step in (1, 2, 3):
        run.save_checkpoint(step, write_weights)
    run.prune(3, 1, 2)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-3"]
