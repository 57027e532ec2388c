"""Sampling that runs out of memory: fewer slots, the same completions."""

from __future__ import annotations

import pytest

from posttrain.engine import TooLargeError
from posttrain.models.forward import prepare_trunk
from posttrain.rollout import Prompt, SamplingParams, SlotSampler
from posttrain.train.fewer_slots import FewerSlots

PROMPTS = [Prompt(input_ids=tuple(range(5, 5 + n)), index=i, samples=4) for i, n in enumerate((3, 9, 5))]
HOW = SamplingParams(max_new_tokens=12, temperature=1.2, seed=3, stop_token_ids=(2,))


def scarce(model, room):
    """Let the model fail in forwards of more than so many tokens, half-way through its layers."""

    def check(module, inputs, output):
        if output.shape[1] > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return model.model.layers[0].mlp.register_forward_hook(check)


def test_it_draws_the_same_with_half_the_slots(make_model) -> None:
    model = make_model()
    prepare_trunk(model)
    expected = SlotSampler(model, num_slots=8, prefill_tokens=16).generate(PROMPTS, HOW)
    said = []
    sampler = FewerSlots(model, announce=said.append, num_slots=8, prefill_tokens=16)
    hook = scarce(model, 10)
    found = sampler.generate(PROMPTS, HOW)
    assert sampler.num_slots in (1, 2, 4)
    assert len(said) > 0
    assert f"{sampler.num_slots} at a time" in said[-1]
    assert [(c.prompt_index, c.sample_index, c.token_ids) for c in found] == [
        (c.prompt_index, c.sample_index, c.token_ids) for c in expected
    ]
    for mine, other in zip(found, expected, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    hook.remove()
    count = len(said)
    sampler.generate(PROMPTS, HOW)
    assert len(said) == count


def test_one_sequence_that_does_not_fit_is_said(make_model) -> None:
    model = make_model()
    prepare_trunk(model)
    scarce(model, 4)
    sampler = FewerSlots(model, announce=lambda sentence: None, num_slots=8)
    with pytest.raises(TooLargeError, match=r"one completion was sampled by itself.*CUDA out of memory"):
        sampler.generate(PROMPTS, HOW)


def test_other_errors_are_left_as_they_are(make_model) -> None:
    model = make_model()
    prepare_trunk(model)
    model.model.layers[0].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        FewerSlots(model, announce=lambda sentence: None, num_slots=8).generate(PROMPTS, HOW)
