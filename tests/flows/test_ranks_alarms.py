"""An alarm ends a run of several processes on all of them alike."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def ends(tiny_config, tmp_path):
    """Exit statuses and what was said, by rank, of two processes whose model hardly ever ends an answer."""

    def run(**keys):
        values = {"reward_funcs": "json_valid", "val_size": 2, "eval_strategy": "steps", "eval_steps": 1}
        values |= {"max_steps": 6, "alarm_window": 3, "alarm_reward_funcs": "length:4-", "save_strategy": "no"}
        config = tiny_config("ppo", tmp_path / "out", **{**values, **keys})
        (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(config.to_flat()), encoding="utf-8")
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(2):
            own = {**shared, "OMP_NUM_THREADS": 1, "RANK": rank, "LOCAL_RANK": rank}
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
            command = [sys.executable, "-m", "posttrain", "train", str(tmp_path / "ppo.yaml")]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        said = [process.communicate(timeout=300)[1] for process in started]
        return [process.returncode for process in started], said

    return run


def log(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def test_stop_is_said_once_and_all_end_with_status_1(ends, tmp_path) -> None:
    statuses, said = ends(on_alarm="stop")
    assert statuses == [1, 1]
    assert "".join(said).count("posttrain: error: stopped by alarm no_eos at step 3 of 6") == 1
    assert "Traceback" not in "".join(said)
    assert [line["current_steps"] for line in log(tmp_path) if "alarm" in line] == [3]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


def test_all_go_back_to_the_same_checkpoint(ends, tmp_path) -> None:
    statuses, said = ends(on_alarm="rollback")
    assert statuses == [0, 0], said
    assert "".join(said).count("Going back to checkpoint-") == 1
    results = json.loads((tmp_path / "out" / "all_results.json").read_text("utf-8"))
    assert (results["stopped_at_step"], results["alarms"]) == (3, {"no_eos": 3})
    best = tmp_path / "out" / f"checkpoint-{results['rolled_back_to']}"
    weights = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert weights == (best / "adapter_model.safetensors").read_bytes()
