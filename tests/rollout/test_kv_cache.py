"""The step's attention against attention written out token by token."""

import math

import pytest
import torch

from posttrain.rollout.kv_cache import KVCache, StepPlan

HEADS, KV_HEADS, SIZE, CAPACITY = 6, 2, 8, 12


def random_tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, HEADS, count, SIZE, generator=generator)
    key, value = (torch.randn(1, KV_HEADS, count, SIZE, generator=generator) for _ in range(2))
    return query, key, value


def written_out(query, keys, values, *, scaling, window, softcap):
    """The last token of a sequence: query [Hq, D] against keys and values [Hkv, n, D] -> [Hq, D]."""
    out = []
    first = 0 if window is None else max(0, keys.shape[1] - window)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        scores = keys[shared, first:] @ query[head] * (SIZE**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        out.append(scores.softmax(-1) @ values[shared, first:])
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("scaling", [None, 0.31])
@pytest.mark.parametrize("stored", [(4, 7), (5, 5), ()])
def test_a_mixed_step_equals_attention_written_out(window, softcap, scaling, stored):
    """Slots that already hold tokens decode one each; prompts of 5 and 2 tokens enter the slots after them."""
    cache = KVCache(4, CAPACITY)
    how = {"scaling": scaling, "dropout": 0.0, "sliding_window": window, "softcap": softcap}
    prefilled = random_tokens(sum(stored), seed=1)
    places = [slot * CAPACITY + i for slot, length in enumerate(stored) for i in range(length)]
    if stored:
        StepPlan(cache, torch.tensor(places), [], stored).attend(0, *prefilled, **how)
    live, prompts = len(stored), (5, 2)
    query, key, value = random_tokens(live + sum(prompts), seed=2)
    places = [slot * CAPACITY + length for slot, length in enumerate(stored)]
    places += [(live + slot) * CAPACITY + i for slot, length in enumerate(prompts) for i in range(length)]
    plan = StepPlan(cache, torch.tensor(places), [n + 1 for n in stored], prompts)
    out = plan.attend(0, query, key, value, **how)
    assert out.shape == (1, live + sum(prompts), HEADS, SIZE)

    expected, start = [], 0
    for slot, length in enumerate(stored):
        span = slice(start, start + length)
        start += length
        history = [torch.cat([old[0, :, span], new[0, :, slot : slot + 1]], 1) for old, new in
                   ((prefilled[1], key), (prefilled[2], value))]  # fmt: skip
        expected.append((query[0, :, slot], *history))
    start = live
    for length in prompts:
        for i in range(length):
            seen = slice(start, start + i + 1)
            expected.append((query[0, :, start + i], key[0, :, seen], value[0, :, seen]))
        start += length
    rows = [written_out(*row, scaling=scaling, window=window, softcap=softcap) for row in expected]
    torch.testing.assert_close(out[0], torch.stack(rows))


def test_a_copied_slot_reads_as_its_source():
    cache = KVCache(3, CAPACITY)
    _, key, value = random_tokens(5, seed=0)
    for layer in (0, 4):
        cache.write(layer, torch.arange(5) + 2 * CAPACITY, key * (layer + 1), value)
    cache.copy(2, 0, 4)
    for layer in (0, 4):
        keys, values = cache.read(layer, 3, 1, 5)
        assert keys.shape == (3, KV_HEADS, 4, SIZE)
        assert torch.equal(keys[0, :, :3], key[0, :, 1:4] * (layer + 1))
        assert torch.equal(values[0, :, :3], value[0, :, 1:4])
        assert keys[0, :, 3].eq(0).all(), "the fifth token was not asked for"
        assert keys[1].eq(0).all()


def test_a_masked_place_never_leaks():
    """A longer neighbour makes the shorter slot's stale places part of the read; their content must not matter."""
    outs = []
    for stale in (0.0, 1e4):
        cache = KVCache(2, CAPACITY)
        _, key, value = random_tokens(2 * CAPACITY, seed=3)
        value = value.clone()
        value[:, :, 3:CAPACITY] += stale
        cache.write(0, torch.arange(2 * CAPACITY), key, value)
        plan = StepPlan(cache, torch.tensor([2, CAPACITY + 9]), [3, 10], [])
        tokens = random_tokens(2, seed=4)
        outs.append(plan.attend(0, *tokens, scaling=None, dropout=0.0, sliding_window=None, softcap=None))
    assert torch.equal(outs[0], outs[1])
    assert math.isfinite(outs[0].sum())


@pytest.fixture
def poisoned_memory():
    """Unset memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "the test needs torch to fill what it does not set"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("softcap", [None, 0.8])
def test_a_grown_cache_reads_as_one_that_was_large_from_the_start(poisoned_memory, softcap):
    large, small = KVCache(3, CAPACITY), KVCache(3, 3, limit=CAPACITY)
    how = {"scaling": None, "dropout": 0.0, "sliding_window": None, "softcap": softcap}
    outs = []
    for cache in (large, small):
        for layer in (0, 4):
            _, key, value = random_tokens(3, seed=layer)
            cache.write(layer, torch.tensor([0, 1, cache.capacity]), key, value)
        cache.reserve(2)
        cache.reserve(4)
        for layer in (0, 4):
            _, key, value = random_tokens(2, seed=layer + 1)
            cache.write(layer, torch.tensor([2, 3]), key, value)
        plan = StepPlan(cache, torch.tensor([4, cache.capacity + 1]), [5, 2], [])
        outs.append([plan.attend(layer, *random_tokens(2, seed=9), **how) for layer in (0, 4)])
    assert (small.capacity, large.capacity) == (6, CAPACITY)
    assert 2 * small.num_bytes == large.num_bytes
    assert all(out.isfinite().all() for out in outs[0])
    assert all(torch.equal(*pair) for pair in zip(*outs, strict=True))


def test_room_doubles_up_to_the_limit():
    cache = KVCache(2, 3, limit=11)
    rooms = []
    for length in (1, 3, 4, 6, 7, 11):
        cache.reserve(length)
        rooms.append(cache.capacity)
    assert rooms == [3, 3, 6, 6, 11, 11]
    with pytest.raises(ValueError, match="12 tokens do not fit"):
        cache.reserve(12)
    far = KVCache(2, 3, limit=100)
    far.reserve(50)
    assert far.capacity == 50
