"""A disk that takes no more: the system itself refuses the bytes, by a limit on the size of a file."""

from __future__ import annotations

import os
import sys

import pytest
from soak_compare import compare
from soak_stages import write_configuration

from posttrain.train.monitor import Monitor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have no such limit there")
CASES = [("sft", "checkpoint-4"), ("sft", "trainer_log.jsonl"), ("ppo", "completions.jsonl")]


@pytest.fixture
def full_after(monkeypatch):
    """From the end of a step on no file may grow beyond its own size now, or beyond 4096 bytes where it is none yet."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_step = Monitor.after_step

    def fill(step, path):
        def limited(self, done, stats):
            result = after_step(self, done, stats)
            if done == step:
                most = path.stat().st_size + 5 if path.is_file() else 4096
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            return result

        monkeypatch.setattr(Monitor, "after_step", limited)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.setattr(Monitor, "after_step", after_step)

    yield fill, free
    free()


@pytest.mark.parametrize(("stage", "refused"), CASES)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_the_run_goes_on_later(
    place, run_here, full_after, reward, tmp_path, capfd, stage, refused
) -> None:
    fill, free = full_after
    keys = {"logging_steps": 1, "save_steps": 2, "plot_loss": False}
    if stage == "ppo":
        keys["reward_model"] = reward
    for name in ("whole", "full"):
        write_configuration(tmp_path / name, place, stage, steps=5, seed=1, **keys)
    assert run_here(tmp_path / "whole") == 0
    capfd.readouterr()
    fill(2, tmp_path / "full" / "out" / refused)
    assert run_here(tmp_path / "full") == 1
    free()
    message = capfd.readouterr().err.splitlines()[-1]
    assert f"could not write {refused} in out: " in message
    assert "File too large" in message
    assert "The last good checkpoint is checkpoint-2: continue with resume_from_checkpoint: true" in message
    assert [name for name in sorted(os.listdir(tmp_path / "full" / "out")) if "checkpoint" in name] == ["checkpoint-2"]
    assert run_here(tmp_path / "full") == 0
    found = compare(tmp_path / "whole" / "out", tmp_path / "full" / "out")
    assert found.different == []
    assert len(found.equal) > 10
