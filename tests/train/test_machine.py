"""What the machine has left, and what a container leaves of it."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch

from posttrain.engine import return_freed_memory
from posttrain.rollout import SamplingParams
from posttrain.train import online
from posttrain.train.machine import _container_limits, free_memory_bytes, peak_memory_bytes


def test_a_container_says_what_it_allows(tmp_path):
    assert _container_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    (tmp_path / "memory.current").write_text("5\n", encoding="utf-8")
    assert _container_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("8000\n", encoding="utf-8")
    assert _container_limits(tmp_path) == [(8000, 5)]


def test_free_memory_is_what_the_container_leaves(monkeypatch):
    there = psutil.virtual_memory().total
    assert 0 < free_memory_bytes() <= there
    monkeypatch.setattr("posttrain.train.machine._container_limits", lambda: [(1000, 400)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert free_memory_bytes() == 600
    assert peak_memory_bytes() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give back what they like")
def test_memory_that_was_freed_between_what_stays_is_given_back():
    process, size = psutil.Process(), 1 << 20
    _ = [torch.ones(8 * size, dtype=torch.uint8) for _ in range(2)]  # the threshold below which the library keeps rises
    del _
    pieces = [torch.ones(size, dtype=torch.uint8) for _ in range(200)]
    del pieces[1::2]
    held = process.memory_info().rss
    return_freed_memory()
    assert held - process.memory_info().rss > 30 * size
    assert all(piece[-1] == 1 for piece in pieces)


def test_what_training_freed_is_given_back_before_completions_are_drawn(monkeypatch):
    order = []
    monkeypatch.setattr(online, "return_freed_memory", lambda: order.append("returned"))
    monkeypatch.setattr(online, "collect", lambda *_, **__: order.append("drawn") or Rollout())

    class Rollout:
        def to(self, device):
            return self

    run = SimpleNamespace(
        engine=SimpleNamespace(weights=lambda role: nullcontext(), device="cpu"),
        sampler=None,
        tokenizer=None,
        sampling=SamplingParams(max_new_tokens=1, stop_token_ids=(), seed=0),
        algorithm=SimpleNamespace(group_size=1),
    )
    online.rollout(run, 0, [], lambda *_: None)
    assert order == ["returned", "drawn"]
