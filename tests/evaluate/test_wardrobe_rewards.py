"""Reward models that do not stand on the model that is evaluated: beside it, or under it."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.errors import UserError
from posttrain.evaluate.wardrobe import load_wearing

ROWS = [[5, 9, 40, 41, 42, 60], [5, 9, 40, 77, 12], [3, 8, 8]]


@pytest.fixture
def batch(make_batch):
    return make_batch(ROWS, starts=[2, 2, 1])


def logits(model):
    """[B, T] tables of log-probabilities of the rows by transformers itself, each row alone."""
    found = torch.zeros(len(ROWS), max(map(len, ROWS)))
    for b, row in enumerate(ROWS):
        ids = torch.tensor([row])
        with torch.no_grad():
            out = model(ids).logits.log_softmax(-1)
        found[b, 1 : len(row)] = out[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return found


def scores(model, head):
    found = []
    for row in ROWS:
        with torch.no_grad():
            found.append(head(model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]))
    return torch.stack(found)


def test_a_sequence_classifier_scores_beside_the_model(eval_config, trained, tiny_llama, batch, tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1).eval()
    torch.manual_seed(4)
    nn.init.normal_(model.score.weight)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)  # other weights than the model that is evaluated
    model.save_pretrained(tmp_path / "rm")
    wardrobe = load_wearing(eval_config(variants=["base", f"sft={trained / 'sft'}"], reward_model=str(tmp_path / "rm")))
    expected = torch.stack([model(torch.tensor([row])).logits[0, 0].detach() for row in ROWS])
    torch.testing.assert_close(wardrobe.scores(wardrobe.reward, batch), expected, atol=1e-5, rtol=0)
    assert wardrobe.reward.trunk is not wardrobe.backbone
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    torch.testing.assert_close(wardrobe.logprobs((), batch), logits(base) * batch.loss_mask, atol=2e-4, rtol=0)


def test_a_reward_of_the_base_under_a_merged_model(eval_config, trained, tiny_llama, batch, tmp_path) -> None:
    """One backbone, the base: the model wears what was merged into it, the reward only its own."""
    config = eval_config(model_name_or_path=str(trained / "merged"), reward_model=str(trained / "rm"))
    wardrobe = load_wearing(config)
    assert wardrobe.reward.trunk is None
    assert any("trained on that base" in note for note in wardrobe.notes)
    merged = AutoModelForCausalLM.from_pretrained(trained / "merged").eval()
    found = wardrobe.logprobs(wardrobe.variants["model"].wears, batch)
    torch.testing.assert_close(found, logits(merged) * batch.loss_mask, atol=2e-4, rtol=0)
    reward = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), trained / "rm").eval()
    expected = scores(reward, wardrobe.reward.head)
    torch.testing.assert_close(wardrobe.scores(wardrobe.reward, batch), expected, atol=2e-4, rtol=0)
    assert (scores(merged, wardrobe.reward.head) - expected).abs().max() > 1e-2


def test_an_adapter_of_another_model_is_scored_on_that(eval_config, trained, tiny_llama, batch, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(other)
    wardrobe = load_wearing(eval_config(model_name_or_path=str(other), reward_model=str(trained / "rm")))
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    expected = scores(PeftModel.from_pretrained(base, trained / "rm").eval(), wardrobe.reward.head)
    torch.testing.assert_close(wardrobe.scores(wardrobe.reward, batch), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(wardrobe.logprobs((), batch), logits(model) * batch.loss_mask, atol=2e-4, rtol=0)


def test_variants_on_a_merged_model_are_checked_against_it(eval_config, trained) -> None:
    """An adapter of the base is no adapter of the merged model, even where the base is what is loaded."""
    keys = {"model_name_or_path": str(trained / "merged"), "reward_model": str(trained / "rm")}
    with pytest.raises(UserError, match=r"twice: .*sft was trained on .*other weights"):
        load_wearing(eval_config(**keys, variants=["model", f"twice={trained / 'sft'}"]))
