import pytest
import torch

from posttrain.data.template import pad_token_id
from posttrain.evaluate.completions import complete, sampling_params
from posttrain.evaluate.rows import read_rows
from posttrain.evaluate.wardrobe import load_wearing
from posttrain.rollout import Prompt, SlotSampler
from posttrain.types import Batch


@pytest.fixture(scope="module")
def config(eval_config, tiny_data, trained, ppo_folder):
    return eval_config(
        eval_dataset=str(tiny_data / "prompts.json"),
        variants=["base", f"pt={trained / 'pt'}", f"ppo={ppo_folder}"],
        reward_model=str(trained / "rm"),
        max_new_tokens=8,
    )


@pytest.fixture(scope="module")
def wardrobe(config):
    return load_wearing(config)


def drawn(config, wardrobe, slots=4, **changes):
    prompts, template, _ = read_rows(config, wardrobe.tokenizer, "ppo")
    params = sampling_params(config, template)
    seen = []
    found = complete(wardrobe, prompts, params, num_slots=slots, progress=lambda *call: seen.append(call))
    return prompts, found, seen


def test_greedy_completions_are_those_of_transformers(config, wardrobe, tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    prompts, found, _ = drawn(config, wardrobe)
    for prompt, text, length in zip(prompts, found["base"].texts, found["base"].lengths, strict=True):
        ids = torch.tensor([prompt.input_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        answer = out[0, ids.shape[1] :]
        assert text == wardrobe.tokenizer.decode(answer, skip_special_tokens=True)
        assert length == len(answer)


def test_rewards_and_kl_are_of_prompt_and_completion(config, wardrobe):
    prompts, found, _ = drawn(config, wardrobe)
    answers, outfit = found["ppo"], wardrobe.variants["ppo"]
    params = sampling_params(config, read_rows(config, wardrobe.tokenizer, "ppo")[1])
    asked = [Prompt(input_ids=tuple(prompt.input_ids), index=i) for i, prompt in enumerate(prompts)]
    with wardrobe.wearing(outfit.wears) as model:
        drawn_again = SlotSampler(model).generate(asked, params)
    for i, completion in enumerate(drawn_again):
        row = torch.tensor([[*prompts[i].input_ids, *completion.token_ids]])
        mask = torch.ones_like(row, dtype=torch.bool)
        answer = mask.clone()
        answer[:, : len(prompts[i].input_ids)] = False
        batch = Batch(input_ids=row, attention_mask=mask, loss_mask=answer)
        assert answers.rewards[i] == pytest.approx(float(wardrobe.scores(wardrobe.reward, batch)[0]), abs=1e-4)
        gap = wardrobe.logprobs(outfit.wears, batch) - wardrobe.logprobs(outfit.reference, batch)
        assert answers.kls[i] == pytest.approx(float(gap.sum()), abs=1e-3)
        # the policy's part is what the sampler recorded
        assert sum(completion.logprobs) == pytest.approx(float(wardrobe.logprobs(outfit.wears, batch).sum()), abs=1e-3)
    assert found["base"].kls is None
    assert max(map(abs, answers.kls)) > 0.01


def test_slots_change_nothing_and_every_variant_is_reported(config, wardrobe):
    _, few, seen = drawn(config, wardrobe, slots=1)
    _, many, _ = drawn(config, wardrobe, slots=12)
    assert few["ppo"].texts == many["ppo"].texts
    assert few["ppo"].rewards == pytest.approx(many["ppo"].rewards, abs=1e-4)
    assert few["base"].texts != few["ppo"].texts
    assert [call for call in seen if call[0] == "generate pt"][-1] == ("generate pt", 12, 12)


def test_without_reward_model_and_reference_there_is_neither(eval_config, tiny_data):
    config = eval_config(eval_dataset=str(tiny_data / "prompts.json"), max_new_tokens=4)
    _, found, _ = drawn(config, load_wearing(config))
    assert (found["model"].rewards, found["model"].kls) == (None, None)


def test_greedy_unless_asked_otherwise(eval_config, wardrobe, config):
    template = read_rows(config, wardrobe.tokenizer, "ppo")[1]
    greedy = sampling_params(eval_config(), template)
    assert (greedy.do_sample, greedy.temperature) == (False, 1.0)
    assert greedy.stop_token_ids == template.stop_token_ids
    sampled = sampling_params(eval_config(do_sample=True, temperature=0.5), template)
    assert (sampled.do_sample, sampled.temperature) == (True, 0.5)


def test_padding_is_not_scored(wardrobe):
    pad = pad_token_id(wardrobe.tokenizer)
    rows = torch.tensor([[5, 9, 40, 41], [5, 9, 40, pad]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    batch = Batch(input_ids=rows, attention_mask=mask, loss_mask=mask)
    alone = Batch(input_ids=rows[1:, :3], attention_mask=mask[1:, :3], loss_mask=mask[1:, :3])
    whole = wardrobe.scores(wardrobe.reward, batch)
    torch.testing.assert_close(whole[1:], wardrobe.scores(wardrobe.reward, alone), atol=1e-5, rtol=0)
