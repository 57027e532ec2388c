"""The workloads of the reference documents at their smallest: every step of the benchmarks, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def ran(script, output, *arguments):
    """What a benchmark wrote, run in a process of its own on one thread."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_gpu_command_runs_whole_on_a_cpu(tmp_path) -> None:
    found = ran("gpu_ppo.py", tmp_path / "out.json", "--size", "tiny", "--iterations", "1")
    assert found["rollouts"] == 8
    assert found["card"] == "none: CPU, float32"
    assert found["command"].startswith("python benchmarks/gpu_ppo.py --size tiny")
    for name in ("seconds_per_rollout", "decode_tokens_per_second", "train_tokens_per_second"):
        assert found[name] > 0
    assert 0 < found["share_of_bandwidth"] < 1
    assert 0 < found["mfu"] < 1
    whole = sum(found["phases"].values()) / found["rollouts"]
    assert found["seconds_per_rollout"] == pytest.approx(whole)


@pytest.mark.slow
def test_the_gpt2_workload_runs_both_ways(tmp_path) -> None:
    arguments = ["--size", "tiny", "--sides", "head", "models", "plain-2", "--iterations", "1", "--threads", "1"]
    found = ran("gpt2_ppo.py", tmp_path / "out.json", *arguments)
    assert [run["samples"] for run in found["runs"]] == [4, 4, 2]
    for side, row in found["sides"].items():
        assert row["seconds_per_sample"] > 0
        assert row["peak_gb"] > 0.1
        assert ("times_faster" in row) == (side in ("head", "models"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks by phase are Linux's")
def test_peaks_of_roles_are_told_by_phase(tmp_path, tiny_llama) -> None:
    arguments = ["--model", str(tiny_llama), "--length", "96", "--new", "8", "--rows", "4", "--threads", "1"]
    found = ran("memory_roles.py", tmp_path / "out.json", *arguments)
    sft, ppo = found["runs"]
    assert set(ppo["phases"]) >= {"sample", "consult", "scores", "accumulate", "optimizer_step"}
    assert "sample" not in sft["phases"]
    assert found["ppo_over_sft"] == pytest.approx(ppo["peak_rss_bytes"] / sft["peak_rss_bytes"])
    assert 0.5 < found["ppo_over_sft"] < 1.5
