"""The load measurement, on a tiny model: every request is answered in full and counted once."""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # `benchmarks` is no part of the package

from benchmarks import serve_load


def test_every_request_is_measured(start, base):
    server = start(model_name_or_path=str(base), max_num_seqs=2)
    found = asyncio.run(serve_load.measured(server.url, "base", clients=4, total=9))
    assert found["requests"] == 9
    assert found["tokens"] == 9 * serve_load.NEW_TOKENS
    assert 0 < found["first_token_p50"] <= found["latency_p50"] <= found["latency_p95"] <= found["seconds"] + 0.01
    assert server.metric("requests_total", endpoint="/v1/chat/completions", status="200") == 10, "one warms up"
    with pytest.raises(RuntimeError, match=r"404: .*does not exist here"):
        asyncio.run(serve_load.measured(server.url, "other", clients=1, total=1))


@pytest.mark.parametrize(("share", "value"), [(0.5, 3.0), (0.95, 5.0), (0.2, 1.0), (0.21, 2.0)])
def test_quantiles(share, value):
    assert serve_load.quantile([5.0, 1.0, 4.0, 2.0, 3.0], share) == value
