"""Numbers about a running server, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_COUNTERS = {
    "requests_total": "Requests that were answered, by endpoint and HTTP status.",
    "prompt_tokens_total": "Tokens of prompts that were answered or begun.",
    "prompt_tokens_reused_total": "Tokens of prompts that were not computed, because they lay in the cache already.",
    "completion_tokens_total": "Tokens that were drawn.",
    "cancelled_total": "Requests whose client went away or whose time was over.",
    "texts_scored_total": "Texts that the reward model scored.",
}
_GAUGES = {
    "queue_length": "Requests that wait for a slot.",
    "live_slots": "Slots with a sequence in them.",
    "slots": "Slots that there are.",
    "cache_bytes": "Memory of keys and values.",
}
_HISTOGRAMS = {
    "request_seconds": "Time from request to complete answer.",
    "first_token_seconds": "Time from request to first token.",
}


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0


class Metrics:
    """Counters and histograms; any thread may add to them."""

    def __init__(self, gauges: Callable[[], Mapping[str, float]] = dict) -> None:
        """Take what says the gauges of the moment, by name."""
        self._gauges = gauges
        self._lock = threading.Lock()
        self._counters: dict[str, dict[tuple[tuple[str, str], ...], int]] = {name: {} for name in _COUNTERS}
        for name in _COUNTERS:
            if name != "requests_total":
                self._counters[name][()] = 0
        self._histograms = {name: _Histogram() for name in _HISTOGRAMS}

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Count."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._counters[name][key] = self._counters[name].get(key, 0) + count

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        with self._lock:
            histogram = self._histograms[name]
            histogram.counts[bisect_left(_BOUNDS, seconds)] += 1
            histogram.total += seconds

    def text(self) -> str:
        """All of them, as Prometheus reads them."""
        lines: list[str] = []
        gauges = self._gauges()
        with self._lock:
            for name, said in _COUNTERS.items():
                lines += _head(name, "counter", said)
                lines += [
                    f"posttrain_{name}{_labels(key)} {count}" for key, count in sorted(self._counters[name].items())
                ]
            for name, said in _GAUGES.items():
                if name in gauges:
                    lines += [*_head(name, "gauge", said), f"posttrain_{name} {gauges[name]:g}"]
            for name, said in _HISTOGRAMS.items():
                lines += _head(name, "histogram", said)
                lines += _buckets(name, self._histograms[name])
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, said: str) -> list[str]:
    return [f"# HELP posttrain_{name} {said}", f"# TYPE posttrain_{name} {kind}"]


def _labels(key: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in key) + "}" if key else ""


def _buckets(name: str, histogram: _Histogram) -> list[str]:
    lines, so_far = [], 0
    for bound, count in zip((*map(str, _BOUNDS), "+Inf"), histogram.counts, strict=True):
        so_far += count
        lines.append(f'posttrain_{name}_bucket{{le="{bound}"}} {so_far}')
    return [*lines, f"posttrain_{name}_sum {histogram.total:.6f}", f"posttrain_{name}_count {so_far}"]
