"""Tokens of a micro-batch where the user does not say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from posttrain.engine import DEFAULT_MAX_TOKENS
from posttrain.train import token_limit
from posttrain.train.memory import MemoryPlan, ModelMemory
from posttrain.train.token_limit import LARGEST, choose_max_tokens, planned_max_tokens

SIZES = {"num_parameters": 0, "num_trained": 0, "weights": 10**12, "adapters": 0, "gradients": 100, "optimizer": 200}
MODEL = ModelMemory(name="m", roles=("actor",), **SIZES)
PLAN = MemoryPlan(
    device="cuda",
    models=(MODEL,),
    num_tokens=10,
    activations=500,
    logits=100,
    merged=0,
    kv_cache=0,
    checkpoint=0,
    lower_states=0,
)


def test_it_is_what_free_memory_takes_beside_gradients_and_moments() -> None:
    # 50 bytes a token; 0.8 x 200,500 = 160,400, less 100 + 200 + 100: 3,200 tokens, of which 6 x 512 are whole
    assert planned_max_tokens(PLAN, 200_500) == 3072
    assert planned_max_tokens(PLAN, 10**9) == LARGEST
    assert planned_max_tokens(PLAN, 0) == DEFAULT_MAX_TOKENS


class Device:
    """What is chosen on a machine with a GPU; another process says ``other``."""

    def __init__(self, other=10**9):
        self.device, self.limit = torch.device("cuda"), None
        self.processes = SimpleNamespace(gather=lambda value: [value, other])
        self.shares = SimpleNamespace(reset=lambda tokens: setattr(self, "limit", tokens))


@pytest.mark.parametrize(("other", "expected"), [(10**9, 3072), (1024, 1024)])
def test_all_processes_take_the_smallest(tiny_config, tmp_path, monkeypatch, other, expected) -> None:
    monkeypatch.setattr(token_limit, "memory_plan", lambda config: PLAN)
    monkeypatch.setattr(token_limit, "free_memory_bytes", lambda: 200_500)
    engine = Device(other)
    assert f"up to {expected} tokens" in choose_max_tokens(tiny_config("sft", tmp_path), engine)
    assert engine.limit == expected


def test_the_user_decides_and_a_cpu_keeps_the_default(tiny_config, tmp_path) -> None:
    engine = Device()
    assert choose_max_tokens(tiny_config("sft", tmp_path, max_tokens_per_microbatch=64), engine) == ""
    engine.device = torch.device("cpu")
    assert choose_max_tokens(tiny_config("sft", tmp_path), engine) == ""
    assert engine.limit is None


def test_the_plan_of_a_real_configuration_serves(tiny_config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(token_limit, "free_memory_bytes", lambda: 30_000_000)
    engine = Device()
    assert choose_max_tokens(tiny_config("sft", tmp_path), engine)
    assert DEFAULT_MAX_TOKENS <= engine.limit <= LARGEST
