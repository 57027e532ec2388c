"""The packed forward against padded forwards of transformers, family by family."""

from __future__ import annotations

import random
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from posttrain.models.attention import NAME
from posttrain.models.forward import answer, is_packed, prepare_trunk, trunk
from posttrain.models.heads import ScalarHead

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2", "gemma3")
MORE_FAMILIES = ("phi3", "olmo2", "smollm3", "gpt_neox")


@pytest.fixture(scope="module")
def models(make_model):
    """Family -> (packed model, transformers' own eager one), both in float64."""
    built = {}

    def of(family):
        if family not in built:
            ours, theirs = make_model(family), make_model(family)
            theirs.set_attn_implementation("eager")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert prepare_trunk(ours)
            built[family] = ours.double(), theirs.double()
        for model in built[family]:
            model.zero_grad()
        return built[family]

    return of


@pytest.fixture(scope="module")
def heads():
    generator = torch.Generator().manual_seed(2)
    value, score = ScalarHead(32, "value"), ScalarHead(32, "score", generator=generator)
    with torch.no_grad():
        value.weight.normal_(generator=generator)
        value.bias.fill_(0.3)
    return {"value": value, "score": score}


def padded_answer(model, heads, batch, temperature):
    """What the same heads say by the book: whole logits of a padded forward, shifted here once more.

    Padding on the right is behind everything that counts, so the causal mask alone is exact; with the padding masked
    too, a sliding window leaves rows without a key, which eager attention turns into NaN in float64.
    """
    out = model(
        input_ids=batch.input_ids,
        attention_mask=torch.ones_like(batch.input_ids),
        output_hidden_states=True,
        use_cache=False,
    )
    logits, states = out.logits / temperature, out.hidden_states[-1]
    counted = batch.loss_mask.clone()
    counted[:, 0] = False
    logprobs = torch.zeros(batch.input_ids.shape, dtype=logits.dtype)
    distribution = logits[:, :-1].log_softmax(-1)
    logprobs[:, 1:] = distribution.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    entropy = torch.zeros_like(logprobs)
    entropy[:, 1:] = -(distribution.exp() * distribution).sum(-1)
    values = torch.zeros_like(logprobs, dtype=torch.float64)
    states = states.double()
    values[:, 1:] = F.linear(states[:, :-1], heads["value"].weight.double(), heads["value"].bias.double()).squeeze(-1)
    last = states[torch.arange(len(batch)), batch.lengths - 1]
    scores = F.linear(last, heads["score"].weight.double()).squeeze(-1)
    zero = torch.zeros((), dtype=logits.dtype)
    return [torch.where(counted, x, zero) for x in (logprobs, entropy, values)] + [scores]


def everything(model, heads, batch, temperature=1.0):
    out = answer(model, heads, batch, wants=("lm_head", "value", "score"), temperature=temperature)
    return [out.logprobs, out.entropy, out.values, out.scores]


def weighted(columns, seed=0):
    """A scalar in which every entry of every column counts differently."""
    generator = torch.Generator().manual_seed(seed)
    return sum((c.double() * torch.randn(c.shape, generator=generator, dtype=torch.float64)).sum() for c in columns)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([1.0, 0.7]))
def test_packed_equals_padded(models, heads, make_batch, ragged_rows, family, seed, temperature) -> None:
    """Outputs and the gradient of every parameter, with shared prefixes and windows shorter than the rows."""
    ours, theirs = models(family)
    batch = make_batch(ragged_rows(seed))
    packed, padded = everything(ours, heads, batch, temperature), padded_answer(theirs, heads, batch, temperature)
    for mine, expected in zip(packed, padded, strict=True):
        torch.testing.assert_close(mine.double(), expected, atol=1e-5, rtol=1e-5)
    weighted(packed).backward()
    weighted(padded).backward()
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    for name, gradient in expected.items():
        gap = (mine[name] - gradient).abs().max()  # norms compute in float32, whatever the model's dtype
        assert gap <= 1e-5 * max(1.0, gradient.abs().max()), f"{name}: {gap}"


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_as_good(make_model, heads, make_batch, ragged_rows, family) -> None:
    ours, theirs = make_model(family), make_model(family).double()
    theirs.set_attn_implementation("eager")
    prepare_trunk(ours)
    batch = make_batch(ragged_rows(5))
    packed, padded = everything(ours, heads, batch), padded_answer(theirs, heads, batch, 1.0)
    for mine, expected in zip(packed, padded, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_what_stands_in_the_padding_changes_nothing(models, heads, make_batch, ragged_rows, family) -> None:
    ours, _ = models(family)
    rows = ragged_rows(7)
    plain, garbage = make_batch(rows, pad=0), make_batch(rows, pad=55, width=40)
    for mine, other in zip(everything(ours, heads, plain), everything(ours, heads, garbage), strict=True):
        other = other[:, : mine.shape[1]] if mine.dim() == 2 else other
        assert torch.equal(mine, other)


def test_ids_outside_the_vocabulary_are_harmless_in_the_padding(models, heads, make_batch, ragged_rows) -> None:
    ours, _ = models("llama")
    batch = make_batch(ragged_rows(7), pad=-100)
    assert all(column.isfinite().all() for column in everything(ours, heads, batch))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_permuting_rows_permutes_outputs(models, heads, make_batch, ragged_rows, family, seed) -> None:
    ours, _ = models(family)
    rows = ragged_rows(seed)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    batch, shuffled = make_batch(rows), make_batch([rows[i] for i in order])
    for mine, other in zip(everything(ours, heads, batch), everything(ours, heads, shuffled), strict=True):
        torch.testing.assert_close(mine[order], other, atol=1e-6, rtol=1e-6)


def test_the_score_is_read_at_the_last_real_token(models, heads, make_batch) -> None:
    """Also where padding is the end-of-sequence token and a row ends with several of those."""
    ours, _ = models("llama")
    eos = 7
    rows = [[9, 10, eos], [11, eos, 12, eos, eos], [13, 14, 15, 16, 17, 18]]
    together = answer(ours, heads, make_batch(rows, pad=eos), wants=("score",)).scores
    for row, score in zip(rows, together, strict=True):
        torch.testing.assert_close(answer(ours, heads, make_batch([row]), wants=("score",)).scores[0], score)
    shorter = answer(ours, heads, make_batch([rows[1][:-1]]), wants=("score",)).scores[0]
    assert abs(shorter - together[1]) > 1e-3


def test_only_what_is_wanted_is_answered(models, heads, make_batch) -> None:
    ours, _ = models("llama")
    out = answer(ours, heads, make_batch([[9, 10, 11]]), wants=("value",))
    assert [out.logprobs is None, out.entropy is None, out.values is None, out.scores is None] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_hits_are_the_most_probable_tokens_of_the_model(models, heads, make_batch, ragged_rows, family) -> None:
    ours, theirs = models(family)
    rows = ragged_rows(3)
    with torch.no_grad():
        # every other token is what the model itself would say
        rows = [list(row) for row in rows]
        for row in rows:
            for place in range(2, len(row), 2):
                row[place] = int(theirs(torch.tensor([row[:place]])).logits[0, -1].argmax())
        batch = make_batch(rows)
        out = answer(ours, heads, batch, wants=("hits",))
        logits = theirs(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    expected = torch.zeros_like(batch.loss_mask)
    chosen = logits[:, :-1].gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    expected[:, 1:] = chosen == logits[:, :-1].amax(-1)
    expected &= batch.loss_mask
    assert torch.equal(out.hits, expected)
    assert 0 < int(expected.sum()) < int(batch.loss_mask.sum())
    plain = answer(ours, heads, batch, wants=("lm_head",))
    torch.testing.assert_close(out.logprobs, plain.logprobs.detach())


def test_the_first_token_is_predicted_by_nothing(models, heads, make_batch) -> None:
    ours, _ = models("llama")
    batch = make_batch([[9, 10, 11, 12]], starts=[0])
    out = answer(ours, heads, batch, wants=("lm_head", "value"))
    assert [column[0, 0].item() for column in (out.logprobs, out.entropy, out.values)] == [0.0, 0.0, 0.0]
    assert (out.logprobs[0, 1:] < 0).all()


@pytest.mark.parametrize("build", ["cohere2", "granite"])
def test_constant_factors_on_the_logits(build, make_batch, heads, ragged_rows) -> None:
    size = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
    torch.manual_seed(1)
    if build == "cohere2":
        model = Cohere2ForCausalLM(Cohere2Config(**size, logit_scale=0.25, sliding_window=5))
    else:
        model = GraniteForCausalLM(GraniteConfig(**size, logits_scaling=4.0, residual_multiplier=0.5))
    model.eval().double()
    batch = make_batch(ragged_rows(3))
    expected = padded_answer(model, heads, batch, 1.0)
    assert prepare_trunk(model)
    for mine, other in zip(everything(model, heads, batch), expected, strict=True):
        torch.testing.assert_close(mine.double(), other, atol=1e-5, rtol=1e-5)


def ignoring(argument):
    """A decoder that never sees ``argument``, as architectures are that make their own positions or attention."""

    def wrap(model):
        decoder = model.get_decoder()
        inner = decoder.forward

        def forward(*args, **kwargs):
            kwargs.pop(argument, None)
            return inner(*args, **kwargs)

        decoder.forward = forward
        return model

    return wrap


@pytest.mark.parametrize("argument", ["position_ids", "plan"])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_cannot_run_packed_falls_back(
    make_model, heads, make_batch, ragged_rows, argument, training
) -> None:
    model, reference = make_model("llama").double(), make_model("llama").double()
    before = model.config._attn_implementation
    model.train(training)
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM cannot run packed .*padded batches"):
        assert not prepare_trunk(ignoring(argument)(model))
    assert not is_packed(model)
    assert model.config._attn_implementation == before != NAME
    assert model.training is training
    prepare_trunk(reference)
    batch = make_batch(ragged_rows(9))
    slow, fast = everything(model, heads, batch), everything(reference, heads, batch)
    for mine, expected in zip(slow, fast, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-6)
    weighted(slow).backward()
    weighted(fast).backward()
    expected = gradients(reference)
    for name, gradient in gradients(model).items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * max(1.0, gradient.abs().max()), name


@pytest.mark.parametrize("family", ["mamba", "gpt_oss"])
def test_real_architectures_that_cannot_run_packed(family, heads, make_batch, ragged_rows) -> None:
    """A state that runs through the rows, and attention with a sink: padded, exact, and said so."""
    size = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    torch.manual_seed(1)
    if family == "mamba":
        model = MambaForCausalLM(MambaConfig(**size, state_size=4))
    else:
        attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5}
        experts = {"intermediate_size": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
        model = GptOssForCausalLM(GptOssConfig(**size, **attention, **experts))
        model.set_attn_implementation("eager")
    model.eval()  # in float32, which the experts' products insist on
    batch = make_batch(ragged_rows(3))
    expected = padded_answer(model, heads, batch, 1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        assert not prepare_trunk(model)
    (sentence,) = (str(warning.message) for warning in said)
    assert re.match(rf"{type(model).__name__} cannot run packed .*padded batches", sentence)
    for mine, other in zip(everything(model, heads, batch), expected, strict=True):
        torch.testing.assert_close(mine.double(), other.double(), atol=1e-5, rtol=1e-5)


def test_the_probe_draws_no_random_numbers(make_model) -> None:
    model = make_model("llama")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    prepare_trunk(model)
    assert torch.equal(torch.rand(3), expected)


def test_the_trunk_runs_on_live_tokens_only(models, make_batch) -> None:
    ours, _ = models("llama")
    rows = [[9] * 20, [10] * 3, [11] * 5]
    hidden, index = trunk(ours, make_batch(rows))
    assert hidden.shape == (28, 32)
    assert index.shape == (3, 20)


def test_equal_batches_from_frozen_tables(models, heads, make_batch, ragged_rows) -> None:
    """A forward leaves the batch as it was."""
    ours, _ = models("llama")
    batch = make_batch(ragged_rows(4))
    before = {name: column.clone() for name, column in vars(batch).items() if isinstance(column, torch.Tensor)}
    everything(ours, heads, batch)
    assert all(torch.equal(getattr(batch, name), column) for name, column in before.items())


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_runs_packed(make_model, heads, make_batch, ragged_rows, family, dtype) -> None:
    """Rounding alone, which moves single numbers of a state far, is no reason to fall back."""
    model = make_model(family).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare_trunk(model)
    exact, _, _, _ = everything(make_model(family), heads, make_batch(ragged_rows(2)))
    found, _, _, _ = everything(model, heads, make_batch(ragged_rows(2)))
    assert (found - exact).abs().max() < 0.5


def blind_to_the_plan(model):
    """A decoder that takes the plan and attends as if the packed row were one text."""
    decoder = model.get_decoder()
    inner = decoder.forward

    def forward(*args, plan=None, **kwargs):
        before = model.config._attn_implementation
        model.config._attn_implementation = "eager"
        try:
            return inner(*args, **kwargs)
        finally:
            model.config._attn_implementation = before

    decoder.forward = forward
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("breaks", [ignoring("position_ids"), ignoring("plan"), blind_to_the_plan])
def test_half_precision_hides_no_model_that_cannot_run_packed(make_model, family, dtype, breaks) -> None:
    model = breaks(make_model(family).to(dtype))
    with pytest.warns(UserWarning, match="cannot run packed"):
        assert not prepare_trunk(model)
