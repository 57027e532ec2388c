"""The slot engine against transformers' generate, against a padded forward, and against itself."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.errors import RunError, UserError
from posttrain.models import attention
from posttrain.rollout import Prompt, SamplingParams, SlotSampler, sampling, slots
from posttrain.rollout.kv_cache import KVCache

VOCABULARY = 61
STOP = 7
STOPS = (STOP, *range(20, 28))  # enough of them that random models end at many lengths
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": STOP,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **{**SIZE, "initializer_range": 0.15},
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=6,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **{**SIZE, "initializer_range": 0.15},
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            initializer_range=0.25,
            bos_token_id=0,
            eos_token_id=STOP,
        )
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """A model under the slot engine's attention and the same one under transformers' own."""
    return models(request.param)


def models(family):
    torch.manual_seed(11)
    ours = FAMILIES[family]().eval()
    theirs = copy.deepcopy(ours)
    theirs.set_attn_implementation("eager")
    attention.register()
    ours.set_attn_implementation(attention.NAME)
    return ours, theirs


def make_prompts(lengths, samples=1, first=0):
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(8, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return [Prompt(input_ids=tuple(ids), index=first + i, samples=samples) for i, ids in enumerate(rows)]


def params(**changes):
    return SamplingParams(**{"max_new_tokens": 12, "stop_token_ids": STOPS, "seed": 3, **changes})


def generated(model, prompt, **options):
    ids = torch.tensor([prompt.input_ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=list(STOPS), pad_token_id=0, **options
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 14},
        {"max_new_tokens": 14, "repetition_penalty": 1.3},
        {"max_new_tokens": 14, "min_new_tokens": 9},
    ],
    ids=["plain", "repetition_penalty", "min_new_tokens"],
)
def test_greedy_equals_generate(pair, options):
    ours, theirs = pair
    prompts = make_prompts([3, 11, 1, 7, 19, 4, 9])
    completions = SlotSampler(ours, num_slots=3, prefill_tokens=16).generate(
        prompts, params(**options, do_sample=False)
    )
    assert [c.token_ids for c in completions] == [generated(theirs, p, **options) for p in prompts]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_generate_over_random_ragged_batches(pair, seed):
    """Any lengths in any number of slots: transformers' tokens and its log-probabilities of them."""
    ours, theirs = pair
    draw = random.Random(seed)
    prompts = make_prompts([draw.randint(1, 40) for _ in range(draw.randint(1, 9))])
    sampler = SlotSampler(ours, num_slots=draw.randint(1, 6), prefill_tokens=draw.randint(1, 60))
    new = draw.randint(1, 20)
    for completion in sampler.generate(prompts, params(max_new_tokens=new, do_sample=False)):
        asked = prompts[completion.prompt_index]
        assert completion.token_ids == generated(theirs, asked, max_new_tokens=new)
        with torch.no_grad():
            logits = theirs(torch.tensor([[*asked.input_ids, *completion.token_ids]])).logits[0]
        expected = logits[len(asked.input_ids) - 1 : -1].log_softmax(-1)
        picked = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), picked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_no_neighbour_changes_a_sample(pair, seed):
    """Sequences in any company give the tokens that they give alone, with their log-probabilities and values."""
    ours, _ = pair
    draw = random.Random(100 + seed)
    prompts = [
        replace(prompt, samples=draw.randint(1, 4))
        for prompt in make_prompts([draw.randint(1, 30) for _ in range(draw.randint(2, 7))], first=draw.randint(0, 99))
    ]
    how = params(temperature=1.2, top_p=draw.choice([1.0, 0.9]), max_new_tokens=draw.randint(1, 16), seed=seed)
    weight = torch.randn(ours.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(1))
    head = lambda hidden: hidden @ weight  # noqa: E731
    company = SlotSampler(
        ours, num_slots=draw.randint(2, 9), prefill_tokens=draw.randint(1, 90), value_head=head
    ).generate(prompts, how)
    alone = [c for prompt in prompts for c in SlotSampler(ours, num_slots=1, value_head=head).generate([prompt], how)]
    assert [c.token_ids for c in company] == [c.token_ids for c in alone]
    for mine, other in zip(company, alone, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert mine.values == pytest.approx(other.values, abs=1e-4)


@pytest.mark.parametrize("do_sample", [True, False])
def test_recorded_logprobs_are_the_policys(pair, do_sample):
    """The raw distribution after temperature, whatever the other processors did to the draw."""
    ours, theirs = pair
    prompts = make_prompts([4, 13, 6], samples=3)
    how = params(do_sample=do_sample, temperature=1.7, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
    completions = SlotSampler(ours, num_slots=4).generate(prompts, how)
    rows = [list(prompts[c.prompt_index].input_ids) + c.token_ids for c in completions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask).logits
    expected = (logits / (1.7 if do_sample else 1.0)).log_softmax(-1)
    for row, completion in enumerate(completions):
        start = len(prompts[completion.prompt_index].input_ids)
        picked = torch.stack([expected[row, start - 1 + t, token] for t, token in enumerate(completion.token_ids)])
        torch.testing.assert_close(torch.tensor(completion.logprobs), picked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("samples", [1, 4])
def test_no_token_goes_through_the_model_twice_or_for_nothing(slots, samples):
    ours, _ = models("llama")
    fed = []
    handle = ours.model.register_forward_pre_hook(
        lambda _, __, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompts = make_prompts([5, 2, 17, 8, 3, 6], samples=samples)
    sampler = SlotSampler(ours, num_slots=slots, prefill_tokens=12)
    completions = sampler.generate(prompts, params(max_new_tokens=9))
    handle.remove()
    decoded = sum(len(c.token_ids) - 1 for c in completions)
    assert len({len(c.token_ids) for c in completions}) > 2, "the test needs sequences of different lengths"
    assert sampler.counters.prefill_tokens == sum(len(p.input_ids) for p in prompts)
    assert sampler.counters.decode_tokens == decoded
    assert sum(fed) == sampler.counters.prefill_tokens + decoded
    assert sampler.counters.decode_steps <= len(fed)
    assert sampler.counters.decode_tokens <= slots * sampler.counters.decode_steps


@pytest.fixture
def caches(monkeypatch):
    """The caches that were made, in order."""
    made = []

    def make(*args, **options):
        made.append(KVCache(*args, **options))
        return made[-1]

    monkeypatch.setattr(slots, "KVCache", make)
    return made


@pytest.mark.parametrize("room", [1, 5])
def test_growing_room_changes_no_completion(pair, caches, monkeypatch, room):
    ours, _ = pair
    prompts = make_prompts([5, 2, 9, 8, 3], samples=3)
    how = params(temperature=1.3, max_new_tokens=60, stop_token_ids=(STOP, 20, 21))
    results = []
    for first in (60, room):
        monkeypatch.setattr(slots, "FIRST_ROOM", first)
        results.append(SlotSampler(ours, num_slots=4, prefill_tokens=16).generate(prompts, how))
    large, grown = caches
    assert large.capacity == 69
    assert 2 * (9 + room) < grown.capacity <= 69, "the test needs room that grows twice"
    assert len({len(c.token_ids) for c in results[0]}) > 5, "the test needs completions of many lengths"
    assert results[0] == results[1]


def test_memory_is_that_of_the_completions_there_are(caches):
    """Room for 1000 tokens may be asked for; sequences that end early take what they need."""
    ours, _ = models("llama")
    prompts = make_prompts([5, 2, 17, 8, 3], samples=2)
    completions = SlotSampler(ours, num_slots=3).generate(prompts, params(max_new_tokens=1000))
    assert max(len(c.token_ids) for c in completions) < 100, "the test needs completions that end early"
    layers, kinds, heads, head_size, width = 3, 2, 2, 8, 4
    assert caches[0].num_bytes == layers * kinds * heads * head_size * width * 3 * (17 + 128)
    SlotSampler(ours, num_slots=3).generate(prompts, params(max_new_tokens=6))
    assert caches[1].num_bytes == layers * kinds * heads * head_size * width * 3 * (17 + 6)


def test_the_head_sees_only_rows_that_sample():
    ours, _ = models("llama")
    rows = []
    handle = ours.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    prompts = make_prompts([9, 4], samples=4)
    completions = SlotSampler(ours, num_slots=3).generate(prompts, params())
    handle.remove()
    assert sum(rows) == len(prompts) + sum(len(c.token_ids) - 1 for c in completions)


def test_full_slots_while_work_is_waiting():
    """12 sequences of one length in 4 slots are 3 rounds; a prompt's own step comes on top of each later round."""
    ours, _ = models("llama")
    sampler = SlotSampler(ours, num_slots=4)
    sampler.generate(make_prompts([6] * 4, samples=3), params(max_new_tokens=6, stop_token_ids=()))
    assert sampler.counters.decode_tokens == 12 * 5
    assert sampler.counters.decode_steps <= 3 * 5 + 2


def test_order_progress_and_ends():
    ours, _ = models("qwen2")
    prompts = make_prompts([6, 3, 12, 5], samples=2, first=40)
    seen = []
    completions = SlotSampler(ours, num_slots=3).generate(prompts, params(), lambda *step: seen.append(step))
    assert [(c.prompt_index, c.sample_index) for c in completions] == [(40 + i, j) for i in range(4) for j in range(2)]
    assert [total for _, total in seen] == [8] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (8, 8)
    for completion in completions:
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.ended == (completion.token_ids[-1] in STOPS)
        assert not set(STOPS) & set(completion.token_ids[:-1])
        assert completion.ended or len(completion.token_ids) == 12
    assert {c.ended for c in completions} == {True, False}, "the test needs both kinds of end"


def test_samples_of_one_prompt_differ_and_repeat_with_the_seed():
    ours, _ = models("llama")
    prompts = make_prompts([6], samples=6)
    sampler = SlotSampler(ours, num_slots=4)

    def draw(**changes):
        return [tuple(c.token_ids) for c in sampler.generate(prompts, params(temperature=3.0, **changes))]

    first = draw()
    assert len(set(first)) == 6
    assert draw() == first
    assert draw(seed=4) != first
    assert draw(iteration=1) != first


def test_every_token_is_drawn_with_its_own_number():
    """Against a padded forward and the sequence's numbers, drawn one after the other."""
    ours, theirs = models("llama")
    prompts = make_prompts([4, 9], samples=2)
    how = params(temperature=1.5)
    for completion in SlotSampler(ours, num_slots=3).generate(prompts, how):
        place = {"prompt_index": completion.prompt_index, "sample_index": completion.sample_index}
        numbers = sampling.uniforms(how.max_new_tokens, seed=how.seed, iteration=how.iteration, **place)
        asked = prompts[completion.prompt_index].input_ids
        with torch.no_grad():
            logits = theirs(torch.tensor([[*asked, *completion.token_ids]])).logits[0, len(asked) - 1 : -1]
        drawn = sampling.draw(logits / 1.5, torch.tensor(numbers[: len(completion.token_ids)]))
        assert completion.token_ids == drawn.tolist()


def test_a_model_in_training_samples_without_dropout_and_stays_in_training():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    sampler = SlotSampler(model)
    prompts = make_prompts([5])
    first = sampler.generate(prompts, params())[0]
    assert sampler.generate(prompts, params())[0].logprobs == first.logprobs
    assert [module.training for module in model.modules()] == modes


def test_load_weights_replaces_by_name():
    ours, _ = models("llama")
    sampler = SlotSampler(ours)
    prompts = make_prompts([5])
    before = sampler.generate(prompts, params(do_sample=False))
    sampler.load_weights(None, version=1)
    assert sampler.generate(prompts, params(do_sample=False)) == before
    name = "model.layers.0.mlp.down_proj.weight"
    sampler.load_weights({name: -ours.state_dict()[name]}, version=2)
    assert sampler.version == 2
    assert sampler.generate(prompts, params(do_sample=False)) != before
    with pytest.raises(KeyError, match="no_such"):
        sampler.load_weights({"no_such": torch.zeros(1)}, version=3)


def test_nothing_to_do_is_done():
    ours, _ = models("llama")
    assert SlotSampler(ours).generate([], params()) == []


def test_too_long_for_learned_positions():
    ours, _ = models("gpt2")
    prompts = make_prompts([5, 120])
    with pytest.raises(UserError, match=r"prompt 1 has 120 tokens.*max_new_tokens 12.*128 positions"):
        SlotSampler(ours).generate(prompts, params())


def test_broken_weights_stop_the_run():
    ours, _ = models("llama")
    ours.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(RunError, match="token 0 of prompt 0"):
        SlotSampler(ours).generate(make_prompts([5]), params())


def test_wrong_attention_is_refused():
    _, theirs = models("llama")
    with pytest.raises(ValueError, match="set_attn_implementation"):
        SlotSampler(theirs)


def test_recorded_values_are_the_heads_of_the_states_before(pair):
    """Against a padded forward: the value at a token is read from the state that it was drawn from."""
    ours, theirs = pair
    prompts = make_prompts([4, 13, 6, 2], samples=3)
    weight = torch.randn(ours.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(1))
    sampler = SlotSampler(ours, num_slots=4, prefill_tokens=16, value_head=lambda hidden: hidden @ weight)
    plain = SlotSampler(ours, num_slots=4, prefill_tokens=16).generate(prompts, params())
    completions = sampler.generate(prompts, params())
    assert [c.token_ids for c in completions] == [c.token_ids for c in plain]
    assert all(c.values is None for c in plain)
    for completion in completions:
        asked = prompts[completion.prompt_index].input_ids
        with torch.no_grad():
            hidden = theirs.get_decoder()(torch.tensor([[*asked, *completion.token_ids]])).last_hidden_state[0]
        expected = hidden[len(asked) - 1 : -1] @ weight
        torch.testing.assert_close(torch.tensor(completion.values), expected, atol=1e-4, rtol=1e-5)
