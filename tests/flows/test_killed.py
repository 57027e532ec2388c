"""The short form of ``make soak``: real processes killed with SIGKILL, interrupted, resumed, compared."""

from __future__ import annotations

import signal
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")]
EXACT = ("trainer_weights.safetensors", "optimizer.safetensors", "trainer_state.json", "adapter_model.safetensors")
# Ctrl-C's checkpoints are the only ones before the end.
ONLY_WHEN_ASKED = {"save_steps": 1000, "save_total_limit": 1, "eval_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """What the shell starts in the background ignores Ctrl-C, and so would the processes started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def assert_same_run(report, folder) -> None:
    assert report.comparisons
    for comparison in report.comparisons:
        assert comparison.different == []
        assert {"adapter_model.safetensors", *(f"{folder}/{name}" for name in EXACT)} <= set(comparison.equal)
        assert {"trainer_log.jsonl", "all_results.json"} <= {*comparison.timeless, *comparison.equal}


def test_sft_killed_and_interrupted_ends_with_the_same_bytes(soak) -> None:
    report = soak("sft", ["ctrl-c", "step", "sigterm"], max_steps=300, **ONLY_WHEN_ASKED).run()
    assert_same_run(report, "checkpoint-300")
    assert report.kills.total() == 1
    assert report.signals == {"ctrl-c": 1, "sigterm": 1}


def test_ppo_killed_in_a_save_and_in_a_rollout_ends_with_the_same_bytes(soak, reward) -> None:
    report = soak("ppo", ["save", "ctrl-c twice", "rollout"], max_steps=20, reward_model=reward).run()
    assert_same_run(report, "checkpoint-20")
    assert report.kills == {"save": 1, "rollout": 1}
    assert report.signals == {"ctrl-c twice": 1}
    assert all("completions.jsonl" in comparison.equal for comparison in report.comparisons)
