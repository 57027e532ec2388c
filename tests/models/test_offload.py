"""Activations that lie elsewhere between forward and backward: the same gradients, no weight moved, nothing twice."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.models import offload
from posttrain.models.adapters import add_adapter, lora_config
from posttrain.models.offload import Offload


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    add_adapter(model, "own", lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",)))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST", 1024)


def gradients(model, times=1):
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    for _ in range(times):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_bits(model):
    wanted = gradients(copy.deepcopy(model))
    away = Offload(model.get_decoder(), pinned=False)
    found = gradients(model, times=2)
    assert away.moved_bytes > 0
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_moved_is_really_gone(model):
    """The hooks give back copies: nothing of what the operations kept is held by the graph."""
    away = Offload(model.get_decoder(), pinned=False)
    sources = []
    pack = away._pack

    def watched(tensor):
        kept = pack(tensor)
        if not isinstance(kept, torch.Tensor):
            assert kept.tensor.data_ptr() != tensor.data_ptr()
            sources.append(kept.source)
        return kept

    away._pack = watched
    ids = torch.arange(32)[None]
    loss = model(input_ids=ids, labels=ids).loss
    assert sum(source.expired() for source in sources) > 0.8 * len(sources)
    loss.backward()


def test_weights_stay_and_shared_tensors_move_once(model):
    away = Offload(model.get_decoder(), pinned=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    moved, pack = [], away._pack

    def watched(tensor):
        kept = pack(tensor)
        if not isinstance(kept, torch.Tensor):
            assert tensor.untyped_storage().data_ptr() not in weights
            moved.append(kept.tensor.data_ptr())
        return kept

    away._pack = watched
    ids = torch.arange(32)[None]
    loss = model(input_ids=ids, labels=ids).loss
    # the inputs of queries, keys and values are one tensor, those of gate and up another
    assert len(moved) - len(set(moved)) >= 3 * (2 + 1)
    loss.backward()


def test_nothing_is_moved_without_gradients(model):
    away = Offload(model.get_decoder(), pinned=False)
    with torch.no_grad():
        model(input_ids=torch.arange(32)[None])
    assert away.moved_bytes == 0
    assert away._watching is None


def test_a_forward_that_fails_leaves_no_hook_behind(model):
    away = Offload(model.get_decoder(), pinned=False)
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[1, 2, 99]]))
    assert away._watching is None
    before = away.moved_bytes
    (torch.ones(64, 64, requires_grad=True) ** 2).sum().backward()
    assert away.moved_bytes == before


def test_an_address_that_is_used_again_is_another_tensor(model):
    away = Offload(model.get_decoder(), pinned=False)
    memory = numpy.zeros(4096, dtype=numpy.float32)
    first = torch.from_numpy(memory)
    kept = away._pack(first)
    del first
    memory[:] = 1
    again = torch.from_numpy(memory)
    assert torch.equal(away._unpack(away._pack(again)), again)
    assert not away._unpack(kept).any()
