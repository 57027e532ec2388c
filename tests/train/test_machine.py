"""What the machine has left, and what a container leaves of it."""

import psutil

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
