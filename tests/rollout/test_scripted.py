import pytest

from posttrain.rollout import Prompt, Sampler, SamplingParams, ScriptedSampler

PARAMS = SamplingParams(max_new_tokens=3, stop_token_ids=(9,), seed=0)


def test_the_script_is_followed_up_to_stop_or_length():
    sampler: Sampler = ScriptedSampler(lambda prompt, i: [prompt.index, 9, 5] if i == 0 else [1, 2, 3, 4], logprob=-2.0)
    prompts = [Prompt(input_ids=(1, 2), index=4, samples=2), Prompt(input_ids=(3,), index=6)]
    progress = []
    completions = sampler.generate(prompts, PARAMS, lambda *step: progress.append(step))
    assert [(c.prompt_index, c.sample_index, c.token_ids, c.ended) for c in completions] == [
        (4, 0, [4, 9], True),
        (4, 1, [1, 2, 3], False),
        (6, 0, [6, 9], True),
    ]
    assert completions[0].logprobs == [-2.0, -2.0]
    assert progress == [(3, 3)]


def test_calls_and_versions_are_remembered():
    sampler = ScriptedSampler(lambda prompt, i: [1])
    prompt = Prompt(input_ids=(1,), index=0)
    sampler.load_weights(None, version=7)
    sampler.generate([prompt], PARAMS)
    assert sampler.calls == [((prompt,), PARAMS)]
    assert sampler.versions == [7]


def test_an_empty_completion_is_refused():
    with pytest.raises(ValueError, match="prompt 2, sample 0"):
        ScriptedSampler(lambda prompt, i: []).generate([Prompt(input_ids=(1,), index=2)], PARAMS)
