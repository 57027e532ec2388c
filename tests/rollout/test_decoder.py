"""Prompts that come and go while others are decoded: each gets what it gets alone."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.models import attention
from posttrain.rollout import Prompt, SamplingParams, SlotSampler

VOCABULARY = 61
STOPS = (7, *range(20, 26))
WAYS = [
    {"do_sample": False},
    {"temperature": 1.3},
    {"temperature": 0.7, "top_k": 20},
    {"top_p": 0.8},
    {"do_sample": False, "repetition_penalty": 1.4},
    {"temperature": 1.1, "repetition_penalty": 1.2, "min_p": 0.02},
    {"temperature": 1.3, "min_new_tokens": 6},
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.25,
    )
    made = LlamaForCausalLM(config).eval()
    attention.register()
    made.set_attn_implementation(attention.NAME)
    return made


@pytest.fixture
def decoder(model):
    """A decoder of few slots and little room, gradients off."""
    with torch.no_grad():
        yield SlotSampler(model, prefill_tokens=24).decoder(3, 8, 120)


def make_prompt(chance, samples=1):
    ids = tuple(chance.randrange(8, VOCABULARY) for _ in range(chance.randint(1, 20)))
    return Prompt(input_ids=ids, index=chance.randrange(1000), samples=samples)


def params(**changes):
    return SamplingParams(**{"max_new_tokens": 15, "stop_token_ids": STOPS, "seed": 3, **changes})


def alone(model, prompt, how):
    return SlotSampler(model, num_slots=prompt.samples).generate([prompt], how)


def completions(group):
    return [sequence.completion() for sequence in group.sequences]


def same(found, expected):
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert [c.ended for c in found] == [c.ended for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_prompts_that_arrive_while_others_are_decoded_get_what_they_get_alone(model, decoder, seed):
    """Any way of drawing beside any other, one or several samples, at any time."""
    chance = random.Random(seed)
    asked = [
        (make_prompt(chance, chance.choice([1, 1, 2, 5])), params(**chance.choice(WAYS), seed=chance.randrange(5)))
        for _ in range(14)
    ]
    groups = []
    while len(groups) < len(asked) or decoder.busy:
        for _ in range(chance.choice([0, 0, 1, 3])):
            if len(groups) < len(asked):
                groups.append(decoder.submit(*asked[len(groups)]))
        decoder.step()
    for group, (prompt, how) in zip(groups, asked, strict=True):
        same(completions(group), alone(model, prompt, how))


@pytest.mark.parametrize("seed", range(4))
def test_who_is_cancelled_leaves_the_others_as_they_are(model, decoder, seed):
    chance = random.Random(seed)
    how = params(temperature=1.2, max_new_tokens=30, stop_token_ids=(7,))
    prompts = [make_prompt(chance, chance.choice([1, 2, 4])) for _ in range(9)]
    groups = [decoder.submit(prompt, how) for prompt in prompts]
    gone = set()
    steps = 0
    while decoder.busy:
        decoder.step()
        steps += 1
        if steps % 4 == 0 and len(gone) < 4:
            number = chance.choice([n for n in range(len(groups)) if n not in gone])
            gone.add(number)
            decoder.cancel(groups[number])
    assert len(gone) == 4
    for number, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        if number not in gone:
            same(completions(group), alone(model, prompt, how))


def test_a_cancelled_prompt_frees_its_slots_at_once(decoder):
    chance = random.Random(0)
    how = params(max_new_tokens=50, stop_token_ids=())
    long = [decoder.submit(make_prompt(chance), how) for _ in range(3)]
    waits = decoder.submit(make_prompt(chance), how)
    for _ in range(3):  # no more prompt tokens than a step may take
        decoder.step()
    assert (decoder.num_live, len(decoder.queue)) == (3, 1)
    decoder.cancel(long[1])
    assert decoder.num_live == 2
    decoder.step()
    assert (decoder.num_live, len(decoder.queue)) == (3, 0)
    assert len(waits.sequences[0].token_ids) == 1
    decoder.cancel(waits)
    for group in (long[0], long[2]):
        decoder.cancel(group)
    assert not decoder.busy
    assert decoder.step() == 0


def test_samples_that_wait_go_with_their_prompt(decoder):
    how = params(max_new_tokens=50, stop_token_ids=())
    group = decoder.submit(make_prompt(random.Random(0), samples=8), how)
    decoder.step()
    assert (decoder.num_live, len(decoder.waiting)) == (3, 5)
    decoder.cancel(group)
    assert not decoder.busy


def test_who_watches_sees_every_token_and_may_end_a_sequence(model, decoder):
    chance = random.Random(1)
    how = params(temperature=1.2, max_new_tokens=20, stop_token_ids=())
    seen = {}

    def watch(sample, logits):
        assert logits.shape == (VOCABULARY,)
        expected = (logits / 1.2).log_softmax(-1)[sample.token_ids[-1]]
        assert sample.logprobs[-1] == pytest.approx(float(expected), abs=1e-5)
        seen.setdefault(sample.sample_index, []).append(sample.token_ids[-1])
        return len(sample.token_ids) < 4 + sample.sample_index

    prompt = make_prompt(chance, samples=5)
    group, other = decoder.submit(prompt, how, watch), decoder.submit(make_prompt(chance), params(do_sample=False))
    while decoder.busy:
        decoder.step()
    whole = alone(model, prompt, how)
    for found, expected in zip(completions(group), whole, strict=True):
        assert found.token_ids == expected.token_ids[: 4 + found.sample_index] == seen[found.sample_index]
        assert not found.ended
    same(completions(other), alone(model, other.prompt, other.params))


def test_steps_say_how_many_sequences_they_finish(decoder):
    chance = random.Random(3)
    total = 0
    for _ in range(5):
        decoder.submit(make_prompt(chance, samples=2), params(temperature=1.4))
    while decoder.busy:
        total += decoder.step()
    assert total == 10


@pytest.fixture
def keeper(model):
    """A decoder that lets long prompts in by parts and computes no beginning twice; and its sampler."""
    sampler = SlotSampler(model, prefill_tokens=24)
    with torch.no_grad():
        yield sampler.decoder(3, 8, 160, keeps=True), sampler


def talk(chance, length):
    return tuple(chance.randrange(8, VOCABULARY) for _ in range(length))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("seed", range(3))
def test_prompts_in_parts_on_known_beginnings_get_what_they_get_alone(make_model, family, seed):
    """Conversations that go on from each other's turns, long and short, some of them cancelled."""
    chance = random.Random(seed)
    attention.register()
    other = make_model(family)
    other.set_attn_implementation(attention.NAME)
    sampler = SlotSampler(other, prefill_tokens=24)
    decoder = sampler.decoder(3, 8, 125, keeps=True)
    starts = [talk(chance, chance.randint(17, 30)) for _ in range(3)]
    asked, groups, gone = [], [], set()
    with torch.no_grad():
        for turn in range(16):
            ids = chance.choice(starts) + talk(chance, chance.randint(1, 40))
            how = params(**chance.choice(WAYS), seed=turn)
            asked.append((Prompt(input_ids=ids, index=turn, samples=chance.choice([1, 1, 3])), how))
            groups.append(decoder.submit(*asked[-1]))
            for _ in range(chance.choice([0, 2, 9])):
                decoder.step()
            if chance.random() < 0.2:
                gone.add(turn)
                decoder.cancel(groups[turn])
            if groups[0].sequences and len(ids) < 60:
                starts[0] = groups[0].prompt.input_ids + tuple(groups[0].sequences[0].token_ids)
        while decoder.busy:
            decoder.step()
    for turn, (group, (prompt, how)) in enumerate(zip(groups, asked, strict=True)):
        if turn not in gone:
            same(completions(group), alone(other, prompt, how))
    assert sampler.counters.reused_tokens > 50


def test_the_next_turn_computes_what_is_new(keeper):
    decoder, sampler = keeper
    chance = random.Random(4)
    how = params(max_new_tokens=9, stop_token_ids=())
    first = decoder.submit(Prompt(input_ids=talk(chance, 20), index=0), how)
    while decoder.busy:
        decoder.step()
    whole = first.prompt.input_ids + tuple(first.sequences[0].token_ids)
    before = sampler.counters.prefill_tokens
    decoder.submit(Prompt(input_ids=whole + talk(chance, 5), index=1), how)
    while decoder.busy:
        decoder.step()
    assert sampler.counters.reused_tokens == len(whole) - 1, "all but the token that was drawn last"
    assert sampler.counters.prefill_tokens - before == 1 + 5


def test_a_long_prompt_does_not_hold_up_who_is_answered(keeper):
    decoder, sampler = keeper
    chance = random.Random(5)
    how = params(max_new_tokens=40, stop_token_ids=())
    short = decoder.submit(Prompt(input_ids=talk(chance, 5), index=0), how)
    decoder.step()
    long = decoder.submit(Prompt(input_ids=talk(chance, 100), index=1), how)
    later = decoder.submit(Prompt(input_ids=talk(chance, 3), index=2), how)
    seen = []
    while not long.sequences:
        before = sampler.counters.prefill_tokens
        decoder.step()
        seen.append((len(short.sequences[0].token_ids), sampler.counters.prefill_tokens - before))
    assert seen == [(2, 24), (3, 24), (4, 24), (5, 24), (6, 4 + 3)]
    assert later.sequences


def test_a_long_prompt_that_is_cancelled_half_way(model, keeper):
    decoder, _ = keeper
    chance = random.Random(6)
    how = params(temperature=1.2)
    long = decoder.submit(Prompt(input_ids=talk(chance, 100), index=0), how)
    other = decoder.submit(Prompt(input_ids=talk(chance, 60), index=1), how)
    decoder.step()
    decoder.cancel(long)
    while decoder.busy:
        decoder.step()
    same(completions(other), alone(model, other.prompt, how))


def test_beginnings_that_are_moved_and_overwritten_in_one_step(model):
    """Two prompts change places: the first takes over what lies in the second's slot and is written over its own."""
    chance = random.Random(7)
    sampler = SlotSampler(model, prefill_tokens=200)
    decoder = sampler.decoder(2, 8, 160, keeps=True)
    one, other, new = talk(chance, 40), talk(chance, 40), talk(chance, 3)
    how = params(max_new_tokens=12, stop_token_ids=())
    with torch.no_grad():
        for first, second, reused in [(one, other, 0), (other + new, one + new, 40), (talk(chance, 30), one + new, 42)]:
            before = sampler.counters.reused_tokens
            groups = [decoder.submit(Prompt(input_ids=ids, index=i), how) for i, ids in enumerate((first, second))]
            while decoder.busy:
                decoder.step()
            assert sampler.counters.reused_tokens - before == reused
            for group in groups:
                same(completions(group), alone(model, group.prompt, how))
