"""Steps on tensors that stay in place against the ordinary ones, as they are and recorded."""

import random
import warnings
from dataclasses import asdict, replace

import pytest
import torch

from posttrain.models.quantize import MARK
from posttrain.models.work import Ledger, counting
from posttrain.rollout import SlotSampler, slots, static_step
from posttrain.rollout.kv_cache import KVCache, StepPlan
from posttrain.rollout.static_step import StaticPlan, StaticStep, rounded_context, rounded_rows

from .tape import Tape
from .test_kv_cache import CAPACITY, HEADS, KV_HEADS, SIZE, random_tokens
from .test_slots import FAMILIES, STOP, make_prompts, models, params


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return models(request.param)[0]


@pytest.fixture
def small_sizes(monkeypatch):
    """Contexts and room so small that tiny completions need several of them."""
    monkeypatch.setattr(static_step, "CONTEXT", 8)
    monkeypatch.setattr(slots, "FIRST_ROOM", 3)


def head_of(model):
    width = model.get_input_embeddings().weight.shape[1]
    weight = torch.randn(width, generator=torch.Generator().manual_seed(1), device=model.device) / width
    return lambda hidden: hidden @ weight


def ask(model, prompts, how, *, recorder=None, progress=None, **options):
    sampler = SlotSampler(model, value_head=head_of(model), **options)
    sampler.recorder = recorder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sampler.generate(prompts, how, progress), sampler.counters


def assert_same(found, expected, tolerance=1e-5):
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=tolerance)
        assert mine.values == pytest.approx(other.values, abs=tolerance)


@pytest.mark.parametrize("recorded", [False, True], ids=["as it is", "recorded"])
@pytest.mark.parametrize("seed", range(3))
def test_static_equals_ordinary_over_random_ragged_batches(model, small_sizes, seed, recorded):
    draw = random.Random(seed)
    prompts = [
        replace(prompt, samples=draw.randint(1, 4))
        for prompt in make_prompts([draw.randint(1, 25) for _ in range(draw.randint(3, 7))])
    ]
    how = params(temperature=1.2, max_new_tokens=40, stop_token_ids=(STOP, 20, 21), seed=seed)
    options = {"num_slots": draw.randint(2, 6), "prefill_tokens": draw.randint(1, 60)}
    assert options["num_slots"] < sum(prompt.samples for prompt in prompts), "the test needs sequences that wait"
    expected, ordinary = ask(model, prompts, how, **options)
    tape = Tape() if recorded else None
    found, counters = ask(model, prompts, how, static=True, recorder=tape, **options)
    assert_same(found, expected)
    assert counters.static_steps > 10, "the test needs steps that admit no prompt"
    assert asdict(counters) | {"static_steps": 0} == asdict(ordinary)
    if tape is not None:
        assert tape.rehearsals + tape.replays == counters.static_steps
        assert tape.replays > 0 < tape.forgotten - 1, "the test needs recordings, and a cache that grows"


@pytest.mark.parametrize("recorded", [False, True], ids=["as it is", "recorded"])
def test_greedy_and_processors(recorded, small_sizes):
    model, _ = models("qwen2")
    prompts = make_prompts([4, 13, 6], samples=3)
    for how in (
        params(do_sample=False),
        params(temperature=1.7, top_k=9, top_p=0.9, repetition_penalty=1.2, min_new_tokens=5),
    ):
        expected, _ = ask(model, prompts, how, num_slots=4)
        found, counters = ask(model, prompts, how, num_slots=4, static=True, recorder=Tape() if recorded else None)
        assert_same(found, expected)
        assert counters.static_steps


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("scaling", [None, 0.31])
def test_the_plan_equals_that_of_an_ordinary_step(window, softcap, scaling):
    """Three slots of other lengths and a row without a sequence; what lies in the fourth slot stays."""
    cache = KVCache(4, CAPACITY, scratch=4)
    _, key, value = random_tokens(4 * CAPACITY, seed=1)
    cache.write(0, torch.arange(4 * CAPACITY), key, value)
    before = [tensor.clone() for tensor in cache.layers[0]]
    how = {"scaling": scaling, "dropout": 0.0, "sliding_window": window, "softcap": softcap}
    lengths = [4, 9, 1]
    places = [slot * CAPACITY + length - 1 for slot, length in enumerate(lengths)]
    tokens = random_tokens(4, seed=2)
    expected = StepPlan(cache, torch.tensor(places), lengths, []).attend(0, *(t[:, :, :3] for t in tokens), **how)
    written = [tensor.clone() for tensor in cache.layers[0]]
    for tensor, old in zip(cache.layers[0], before, strict=True):
        tensor.copy_(old)
    plan = StaticPlan(cache, torch.tensor([*places, cache.first_scratch + 3]), torch.tensor([*lengths, 1]), 10)
    found = plan.attend(0, *tokens, **how)
    assert found.shape == (1, 4, HEADS, SIZE)
    torch.testing.assert_close(found[:, :3], expected)
    for tensor, other in zip(cache.layers[0], written, strict=True):
        assert tensor.shape == (KV_HEADS, 4 * CAPACITY + 4, SIZE)
        assert torch.equal(tensor[:, : 4 * CAPACITY], other[:, : 4 * CAPACITY])


def test_rows_without_a_sequence_leave_the_slots_alone():
    """Three sequences are four rows; what lies in the fourth slot, such as a prompt, may be wanted later."""
    model, _ = models("gpt2")
    cache = KVCache(4, 10, scratch=4)
    for layer in range(3):
        key, value = torch.randn(2, 1, 4, 40, 8, generator=torch.Generator().manual_seed(layer))
        cache.write(layer, torch.arange(40), key, value)
    before = {layer: key.clone() for layer, (key, _) in cache.layers.items()}
    with torch.no_grad():
        hidden, logits = StaticStep(model, cache)([9, 10, 11], [4, 0, 9])
    assert (hidden.shape, logits.shape) == ((3, 32), (3, 61))
    for layer, (key, _) in cache.layers.items():
        changed = (key != before[layer]).any(-1).any(0).nonzero()[:, 0].tolist()
        assert changed == [4, 10, 29, 43]


def test_sizes_are_few():
    assert [rounded_rows(live, 24) for live in (1, 2, 3, 4, 5, 9, 16, 17, 24)] == [1, 2, 4, 4, 8, 16, 16, 24, 24]
    assert [rounded_context(length, 300) for length in (1, 128, 129, 256, 257, 300)] == [128, 128, 256, 256, 300, 300]


def test_steps_of_one_size_are_one_recording():
    model, _ = models("llama")
    tape = Tape()
    how = params(max_new_tokens=30, stop_token_ids=())
    _, counters = ask(model, make_prompts([5, 9, 3]), how, static=True, recorder=tape)
    assert counters.static_steps == 29
    assert (tape.rehearsals, tape.records, tape.replays, tape.forgotten) == (1, 1, 28, 1)


def test_weights_that_move_are_read_where_they_are(small_sizes):
    """Merging gives weights other memory, between calls as a rule; here within one, too."""
    model, _ = models("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    first, second = weight.data, -weight.data
    prompts, how = make_prompts([5, 9, 3, 7], samples=2), params(max_new_tokens=30)

    def exchange(done, total):
        weight.data = second if done % 2 else first

    def asked(**options):
        weight.data = first
        answers = [ask(model, prompts, how, num_slots=5, progress=exchange, **options)[0]]
        weight.data = second
        return [*answers, ask(model, prompts, how, num_slots=5, **options)[0]]

    tape = Tape()
    for found, expected in zip(asked(static=True, recorder=tape), asked(), strict=True):
        assert_same(found, expected)
    assert tape.replays > 0
    assert_same(asked(static=True)[0], asked()[0])


def test_a_recording_is_dropped_when_anything_it_reads_has_moved():
    model, _ = models("llama")
    weight = model.model.layers[0].self_attn.q_proj.weight
    cache = KVCache(2, 10, limit=40, scratch=2)
    for layer in range(3):
        _, key, value = (torch.zeros(1, 2, 1, 8) for _ in range(3))
        cache.write(layer, torch.tensor([0]), key, value)
    tape = Tape()
    step = StaticStep(model, cache, tape)
    with torch.no_grad():
        for position in range(4):
            step([9, 10], [position, position])
        assert (tape.rehearsals, tape.records, tape.replays, tape.forgotten) == (1, 1, 3, 1)
        cache.reserve(11)
        step([9, 10], [4, 4])
        assert (tape.rehearsals, tape.records, tape.forgotten) == (2, 1, 2)
        weight.data = weight.data.clone()
        step([9, 10], [5, 5])
        assert (tape.rehearsals, tape.records, tape.forgotten) == (3, 1, 3)
        weight.data.mul_(2)
        step([9, 10], [6, 6])
        assert (tape.rehearsals, tape.records, tape.forgotten) == (3, 2, 3), "values may change, addresses not"


class Broken(Tape):
    """Fails where it is told to."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def rehearse(self, step):
        super().rehearse(step)
        if self.where == "rehearse":
            raise RuntimeError("no luck today")

    def record(self, step):
        if self.where == "record":
            raise RuntimeError("no luck today")
        return super().record(step)


@pytest.mark.parametrize("where", ["rehearse", "record"])
def test_what_cannot_be_recorded_goes_the_ordinary_way_and_says_so_once(where):
    model, _ = models("llama")
    prompts, how = make_prompts([5, 9, 3], samples=2), params()
    expected, ordinary = ask(model, prompts, how)
    sampler = SlotSampler(model, value_head=head_of(model), static=True)
    sampler.recorder = Broken(where)
    with pytest.warns(UserWarning, match="without CUDA graphs.*LlamaForCausalLM cannot be recorded: no luck") as said:
        found = sampler.generate(prompts, how)
    assert len(said) == 1
    assert_same(found, expected)
    tried = sampler.counters.static_steps
    assert asdict(sampler.counters) == asdict(ordinary) | {"static_steps": tried}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(sampler.generate(prompts, how), expected)
    assert sampler.counters.static_steps == tried


def test_a_model_that_waits_for_the_device_cannot_be_recorded():
    model, _ = models("llama")
    handle = model.model.layers[1].mlp.register_forward_hook(lambda _, __, out: out if out.sum().item() else None)
    sampler = SlotSampler(model, static=True)
    sampler.recorder = Tape()
    with pytest.warns(UserWarning, match="waits for the device"):
        sampler.generate(make_prompts([5, 9]), params())
    handle.remove()
    assert (sampler.recorder.rehearsals, sampler.recorder.records) == (1, 0)


def test_a_step_that_fails_as_it_is_is_no_matter_of_recording():
    """Without a recorder nothing is swallowed."""
    model, _ = models("llama")
    sampler = SlotSampler(model, static=True)
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: inputs[0] @ torch.zeros(1, 1))
    with pytest.raises(RuntimeError, match="shapes"):
        sampler.generate(make_prompts([5]), params())
    handle.remove()


def test_who_goes_the_ordinary_way():
    model, _ = models("llama")
    prompts, how = make_prompts([5, 9]), params(stop_token_ids=())
    assert ask(model, prompts, how)[1].static_steps == 0, "a CPU, unless asked"
    assert ask(model, prompts, how, static=False)[1].static_steps == 0
    assert ask(model, prompts, how, static=True)[1].static_steps == 11
    setattr(model, MARK, "to 4 bits")
    assert ask(model, prompts, how, static=True)[1].static_steps == 0, "quantised"
    assert SlotSampler(models("llama")[0]).is_static(torch.device("cuda")), "a GPU, unless told not to"


def test_rows_without_a_sequence_count_as_executed():
    model, _ = models("llama")
    prompts, how = make_prompts([5, 9, 3, 7]), params(max_new_tokens=20)
    works = []
    for static in (False, True):
        with counting(ledger := Ledger(), "sampling"):
            _, counters = ask(model, prompts, how, static=static)
        works.append(ledger["decode"])
    ordinary, padded = works
    assert ordinary.held == padded.held == counters.decode_tokens == ordinary.positions
    assert padded.positions > padded.held, "the test needs a step of three"
    assert padded.flops > ordinary.flops
    assert padded.ideal_flops == ordinary.ideal_flops


def test_a_cache_without_scratch_places_is_refused():
    with pytest.raises(ValueError, match="scratch"):
        StaticStep(models("llama")[0], KVCache(2, 10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graphs_equal_ordinary_steps(family, small_sizes):
    """Greedy and drawn, a cache that grows, weights that move between calls; a warning would be an error."""
    model = models(family)[0].cuda()
    prompts = make_prompts([5, 9, 21, 3, 7, 14], samples=3)
    for how in (params(max_new_tokens=60, do_sample=False), params(max_new_tokens=60, temperature=1.2)):
        for _ in range(2):
            expected, ordinary = ask(model, prompts, how, num_slots=7, static=False)
            found, counters = ask(model, prompts, how, num_slots=7)
            assert_same(found, expected, 1e-4)
            assert counters.static_steps > 0 == ordinary.static_steps
            for parameter in model.parameters():
                parameter.data = parameter.data * 1.01
