"""Every way to compute packed attention against the textbook, forward and gradient, over random trees of rows."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.models import attention_backends, attention_tiles, packing
from posttrain.models.attention_backends import BACKENDS, attended, default_backends, usable
from posttrain.models.attention_terms import Terms
from posttrain.models.forward import prepare_trunk, trunk
from posttrain.models.packing import packed

ON_CPU = ("tiles", "sdpa", "flex")


@pytest.fixture
def flex_backward(monkeypatch):
    """PyTorch refuses FlexAttention's backward on a CPU, though its uncompiled operator computes one."""
    torch._dynamo.reset()  # it counts recompilations of all tests together, and gives up at some point
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
    own = attention_backends.flex_refusal
    monkeypatch.setitem(BACKENDS, "flex", BACKENDS["flex"]._replace(refusal=lambda p, q, t: own(p, q.detach(), t)))


def branching_rows(seed, longest=40):
    """Rows that share beginnings to several depths, in random order; some equal, some that begin others."""
    chance = random.Random(seed)
    rows = [[chance.randrange(1, 9) for _ in range(chance.randint(1, longest))] for _ in range(chance.randint(1, 3))]
    for _ in range(chance.randint(0, 7)):
        row = chance.choice(rows)
        kept = row[: chance.randint(0, len(row))]
        rows.append(kept + [chance.randrange(1, 9) for _ in range(chance.randint(0 if kept else 1, longest))])
    chance.shuffle(rows)
    return rows


def textbook(rows, plan, query, key, value, terms):
    """softmax(s q kᵀ) v row by row with a mask written out; a token that rows share is taken from the last of them."""
    out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
    groups = query.shape[1] // key.shape[1]
    for b, row in enumerate(rows):
        places = plan.index[b, : len(row)]
        q, k, v = (x[0, :, places] for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = terms.scale * q @ k.transpose(1, 2)
        if terms.softcap:
            scores = terms.softcap * torch.tanh(scores / terms.softcap)
        distance = torch.arange(len(row))[:, None] - torch.arange(len(row))
        hidden = (distance < 0) | (distance >= (terms.window or len(row)))
        found = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        out = out.index_put((torch.tensor([0]), places), found.transpose(0, 1))
    return out


def assert_textbook(name, rows, plan, terms, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(plan.num_tokens, count, 4) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(1, *shape, generator=generator, dtype=torch.float64).transpose(1, 2) for shape in shapes]
    inputs = [x.requires_grad_() for x in inputs]
    expected = textbook(rows, plan, *inputs, terms)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    found = BACKENDS[name].attend(plan, *inputs, terms)
    assert not BACKENDS[name].refusal(plan, inputs[0], terms)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    mine, theirs = (torch.autograd.grad(out, inputs, weights) for out in (found, expected))
    for gradient, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.usefixtures("flex_backward")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    window=st.sampled_from([None, 1, 3, 17, 200]),
    softcap=st.sampled_from([None, 0.7]),
    heads=st.sampled_from([(2, 2), (6, 2), (3, 1)]),
    shortest=st.sampled_from([1, 8]),
)
def test_attention_is_the_textbook_one(make_batch, name, seed, window, softcap, heads, shortest) -> None:
    """With trees of prefixes, windows, soft-caps and grouped heads; tiles small enough that segments take several."""
    rows = branching_rows(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST_PREFIX", shortest)
        patch.setattr(attention_tiles, "_MOST_ROWS", 16)
        plan = packed(make_batch(rows))
    assert_textbook(name, rows, plan, Terms(0.3, window=window, softcap=softcap), heads, seed)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    window=st.sampled_from([None, 5, 30]),
    most=st.sampled_from([16, 32, 64]),
    overhead=st.sampled_from([0, 1 << 10, 1 << 30]),
)
def test_tiles_of_every_cut(make_batch, seed, window, most, overhead) -> None:
    """From one tile for each piece to as many segments in a tile as go in."""
    rows = branching_rows(seed, longest=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_tiles, "_MOST_ROWS", most)
        patch.setattr(attention_tiles, "_TILE_OVERHEAD", overhead)
        plan = packed(make_batch(rows))
        assert_textbook("tiles", rows, plan, Terms(0.5, window=window), (4, 2), seed)
        cut = attention_tiles.tiles(plan, 4, window, torch.float64)
    assert [tile.start for tile in cut] == [0, *(tile.stop for tile in cut[:-1])]
    assert cut[-1].stop == plan.num_tokens
    assert all(tile.stop - tile.start <= most for tile in cut)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.usefixtures("flex_backward")
def test_one_plan_serves_layers_of_all_kinds(make_batch, name) -> None:
    """Gemma's layers, with a window and without, follow each other over the same plan."""
    rows = [[1] * 9 + [2, 3], [1] * 9 + [4], [6, 7, 8, 9]]
    plan = packed(make_batch(rows))
    for window in (3, None, 5):
        assert_textbook(name, rows, plan, Terms(0.3, window=window), (2, 1), 0)


def test_short_segments_share_a_tile_and_long_ones_take_several(make_batch) -> None:
    short = packed(make_batch([[n, 1, 2] for n in range(10, 20)]))
    assert len(attention_tiles.tiles(short, 4, None, torch.float32)) == 1
    long = packed(make_batch([[5] * 200]))
    cut = attention_tiles.tiles(long, 4, None, torch.float32)
    assert [(tile.start, tile.stop, tile.num_keys, tile.free) for tile in cut] == [
        *((0, 64, 64, 1), (64, 128, 128, 65), (128, 192, 192, 129), (192, 200, 200, 193)),
    ]
    windowed = attention_tiles.tiles(long, 4, 10, torch.float32)
    assert [tile.num_keys for tile in windowed] == [64, 73, 73, 17]


def test_segments_alike_are_one_call(make_batch, monkeypatch) -> None:
    """Eight answers of one length behind one prompt cost the fused kernel two calls, not nine."""
    plan = packed(make_batch([[*range(1, 21), 30 + n, 1, 1] for n in range(8)]))
    assert len(plan.segments) == 9
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape) or kernel(*a, **k)
    )
    numbers = torch.randn(1, 2, plan.num_tokens, 4)
    BACKENDS["sdpa"].attend(plan, numbers, numbers, numbers, Terms(0.5))
    assert sorted(shape[0] for shape in calls) == [1, 8]


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dropout_in_tiles(make_batch, softcap) -> None:
    """On average the weights are those without; forward and backward drop the same ones; a seed repeats them."""
    plan = packed(make_batch([[5] * 30, [6] * 9]))
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(1, 2, 39, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]

    def dropped(*tensors):
        torch.manual_seed(3)
        return BACKENDS["tiles"].attend(plan, *tensors, Terms(0.5, dropout=0.3, softcap=softcap))

    assert torch.equal(dropped(*inputs), dropped(*inputs))
    assert torch.autograd.gradcheck(dropped, inputs, fast_mode=True)
    ones = torch.ones(1, 2, 39, 4, dtype=torch.float64)
    wet = BACKENDS["tiles"].attend(plan, *inputs[:2], ones, Terms(0.5, dropout=0.3, softcap=softcap))
    assert wet.mean().item() == pytest.approx(1.0, abs=0.15)
    assert wet.std() > 0.1


def test_tiles_keep_their_inputs_alone(make_batch) -> None:
    plan = packed(make_batch([[5] * 100, [6] * 50]))
    inputs = [torch.randn(1, heads, 150, 8).requires_grad_() for heads in (4, 2, 2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        BACKENDS["tiles"].attend(plan, *inputs, Terms(0.3, softcap=2.0))
    assert kept == [x.data_ptr() for x in inputs]


def test_who_takes_what(make_batch) -> None:
    plan = packed(make_batch([[5] * 12, [5] * 12 + [6]]))
    half = torch.zeros(1, 2, plan.num_tokens, 4, dtype=torch.bfloat16)
    assert "not torch.bfloat16" in BACKENDS["tiles"].refusal(plan, half, Terms(1.0))
    assert "dropout" in BACKENDS["flex"].refusal(plan, half, Terms(1.0, dropout=0.1))
    assert "not on cpu" in BACKENDS["varlen"].refusal(plan, half, Terms(1.0))
    assert attended(plan, half, half, half, Terms(1.0), ("varlen", "tiles")).dtype == torch.bfloat16
    meta = torch.empty(1, 2, plan.num_tokens, 4, device="meta")
    assert "not for meta" in BACKENDS["tiles"].refusal(plan, meta, Terms(1.0))


def test_defaults_of_a_device(monkeypatch) -> None:
    assert default_backends(torch.device("cpu")) == ("tiles", "sdpa")
    assert default_backends(torch.device("cuda")) == ("varlen", "sdpa")
    assert default_backends(torch.device("mps")) == ("sdpa",)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert default_backends(torch.device("cpu")) == ("sdpa",)


def broken(plan, query, key, value, terms):
    raise RuntimeError("no compiler here\nand a long trace")


def wrong_backward(plan, query, key, value, terms):
    return BACKENDS["sdpa"].attend(plan, query, key, 0.5 * value.detach() + 0.5 * value, terms)


@pytest.mark.parametrize(
    ("attend", "says"),
    [(broken, r"RuntimeError: no compiler here\)"), (wrong_backward, "differs from the exact result")],
)
@pytest.mark.usefixtures("flex_backward")
def test_a_backend_that_fails_its_trial_is_left_out(make_model, make_batch, monkeypatch, attend, says) -> None:
    monkeypatch.setitem(BACKENDS, "flex", BACKENDS["flex"]._replace(attend=attend))
    model, batch = make_model("llama"), make_batch([[9, 10, 11]])
    with pytest.warns(UserWarning, match=f"attention by flex is not used .*{says}"):
        assert prepare_trunk(model, ("flex",))
    expected = make_model("llama")
    prepare_trunk(expected)
    torch.testing.assert_close(trunk(model, batch)[0], trunk(expected, batch)[0], atol=1e-5, rtol=1e-5)


def test_what_was_asked_for_and_cannot_be_is_said(make_model, make_batch) -> None:
    """The same is no surprise where nobody asked."""
    plan = packed(make_batch([[9, 10, 11]]))
    with pytest.warns(UserWarning, match="attention by varlen is not used .*CUDA devices, not on cpu"):
        assert usable(make_model("llama"), [plan], ("varlen", "tiles")) == ("tiles", "sdpa")
    with pytest.warns(UserWarning, match="attention by flex is not used .*no backward on a CPU"):
        assert usable(make_model("llama"), [plan], ("flex",)) == ("sdpa",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable(make_model("llama"), [plan]) == ("tiles", "sdpa")
        assert usable(make_model("llama").bfloat16(), [plan]) == ("sdpa",)


@pytest.mark.usefixtures("flex_backward")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_a_whole_model_by_flex_attention(make_model, make_batch, ragged_rows, family) -> None:
    batch = make_batch(ragged_rows(3))
    ours, theirs = make_model(family), make_model(family)
    assert prepare_trunk(ours, ("flex",))
    assert prepare_trunk(theirs, ("sdpa",))
    ours, theirs = ours.double(), theirs.double()
    assert ours.attention_backends == ("flex", "sdpa")
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        own = BACKENDS["flex"].attend
        patch.setitem(BACKENDS, "flex", BACKENDS["flex"]._replace(attend=lambda *a: calls.append(1) or own(*a)))
        states, index = trunk(ours, batch)
    assert len(calls) == 2
    expected, other = trunk(theirs, batch)
    mask = batch.attention_mask
    torch.testing.assert_close(states[index[mask]], expected[other[mask]], atol=1e-5, rtol=1e-5)
    assert attention_backends.FALLBACK == "sdpa"
