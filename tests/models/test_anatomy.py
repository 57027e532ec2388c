"""The fewest operations that a pass needs, against sums made by hand."""

from __future__ import annotations

from functools import partial

import pytest

from posttrain.models.adapters import adapter_parameters, add_adapter, lora_config
from posttrain.models.anatomy import Anatomy
from posttrain.models.work import seen

# The tiny Llama: 2 layers, width 32, 4 heads of 8 over 2 of keys, MLP of 48, vocabulary 61.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
HEAD = 32 * 61
TOKENS, TARGETS = 10, 3
SEEN = 55  # 1 + 2 + ... + 10
ATTENTION = 4 * 32 * SEEN  # of one layer


@pytest.fixture
def llama(make_model):
    model = make_model("llama")
    model.requires_grad_(False)
    return model


def trained(model, *names):
    """Ids of the parameters whose names hold one of these."""
    return {id(p) for n, p in model.named_parameters() if any(name in n for name in names)}


def costs(body):
    sequence = partial(seen, 0, TOKENS)
    return body.forward(TOKENS, sequence, TARGETS), body.training(TOKENS, sequence, TARGETS)


def test_a_forward(llama) -> None:
    body = Anatomy.of(llama)
    assert (body.trunk, body.head) == (2 * LAYER, HEAD)
    forward = 2 * 2 * LAYER * TOKENS + 2 * ATTENTION + 2 * HEAD * TARGETS
    assert costs(body) == (forward, forward)  # nothing trains


def test_training_all_weights_is_three_forwards(llama) -> None:
    body = Anatomy.of(llama, {id(p) for p in llama.parameters()})
    forward, training = costs(body)
    assert training == 3 * forward


def test_training_an_adapter_is_two_forwards_and_six_for_its_own_weights(llama) -> None:
    add_adapter(llama, "a", lora_config(llama, rank=2, alpha=4, dropout=0.0, targets=("all",)))
    own = adapter_parameters(llama, "a")
    body = Anatomy.of(llama, {id(p) for p in own.values()})
    forward, training = costs(body)
    assert forward == costs(Anatomy.of(llama))[0]
    size = sum(p.numel() for p in own.values())
    assert training == 2 * forward + 2 * ATTENTION + 6 * size * TOKENS  # attention's backward is two forwards of it


def test_beneath_the_lowest_weight_that_trains_there_is_no_backward(llama) -> None:
    forward, training = costs(Anatomy.of(llama, trained(llama, "layers.1.mlp.up_proj")))
    backward = 2 * LAYER * TOKENS + 2 * ATTENTION + 2 * HEAD * TARGETS
    assert training == forward + backward + 2 * 32 * 48 * TOKENS


def test_the_output_head_alone(llama) -> None:
    forward, training = costs(Anatomy.of(llama, trained(llama, "lm_head")))
    assert training == forward + 2 * HEAD * TARGETS


def test_embeddings_are_beneath_all_layers(llama) -> None:
    forward, training = costs(Anatomy.of(llama, trained(llama, "embed_tokens")))
    assert training == 2 * forward + 2 * 2 * ATTENTION / 2


def test_a_decode_step_reads_all_weights_and_the_keys_of_live_slots(llama) -> None:
    body = Anatomy.of(llama)
    keys = 2 * 2 * 2 * 8  # layers, keys and values, heads, size
    assert body.step_bytes(contexts=100) == 4 * (2 * LAYER + HEAD + 100 * keys)


@pytest.mark.parametrize(
    ("family", "layer", "windows"),
    [
        ("gpt2", 4 * 32 * 32 + 2 * 4 * 32 * 32, (None, None)),
        ("mistral", LAYER, (5, 5)),
        ("qwen2", LAYER, (None, None)),
        ("qwen3", LAYER, (None, None)),
        ("gemma3", LAYER, (6, None)),
    ],
)
def test_other_families(make_model, family, layer, windows) -> None:
    body = Anatomy.of(make_model(family))
    assert [found.linear for found in body.layers] == [layer, layer]
    assert tuple(found.window for found in body.layers) == windows
    assert [found.attention for found in body.layers] == [32, 32]
    assert body.outside == 0


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 9), (4, 9), (8, 9), (5, 5)])
def test_what_tokens_see(start, stop, window) -> None:
    assert seen(start, stop, window) == sum(min(i + 1, window or 99) for i in range(start, stop))
