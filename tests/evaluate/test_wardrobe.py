import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from posttrain.errors import UserError
from posttrain.evaluate.wardrobe import load_wearing
from posttrain.models.variants import variant_folders

ROWS = [[5, 9, 40, 41, 42, 60], [5, 9, 40, 77, 12], [3, 8, 8]]


def reference_logprobs(model, batch):
    """[B, T] by transformers itself, row by row without padding."""
    table = torch.zeros(batch.input_ids.shape)
    for b, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[b : b + 1, :length]
        with torch.no_grad():
            found = model(ids).logits.float().log_softmax(-1)
        table[b, 1:length] = found[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return table * batch.loss_mask


@pytest.fixture
def batch(make_batch):
    return make_batch(ROWS, starts=[2, 2, 1])


def test_each_variant_answers_as_peft_does(eval_config, trained, tiny_llama, batch):
    wardrobe = load_wearing(eval_config(variants=["base", f"sft={trained / 'sft'}", f"chain={trained / 'sft_on_pt'}"]))
    found = {name: wardrobe.logprobs(outfit.wears, batch) for name, outfit in wardrobe.variants.items()}
    expected = {"base": reference_logprobs(AutoModelForCausalLM.from_pretrained(tiny_llama), batch)}
    for name, folders in {"sft": ["sft"], "chain": ["pt", "sft_on_pt"]}.items():
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        for folder in folders:
            model = PeftModel.from_pretrained(model, trained / folder).merge_and_unload()
        expected[name] = reference_logprobs(model.eval(), batch)
    for name, table in expected.items():
        torch.testing.assert_close(found[name], table, atol=2e-4, rtol=0)
    assert (found["base"] - found["sft"]).abs().max() > 0.1
    assert (found["sft"] - found["chain"]).abs().max() > 0.1
    assert torch.equal(wardrobe.logprobs((), batch), found["base"])


def test_adapters_that_all_begin_with_are_folded_and_the_others_worn(eval_config, trained, batch):
    both = load_wearing(eval_config(variants=[f"pt={trained / 'pt'}", f"chain={trained / 'sft_on_pt'}"]))
    assert both.variants["pt"].wears == ()
    assert len(both.variants["chain"].wears) == 1
    apart = load_wearing(eval_config(variants=["base", f"pt={trained / 'pt'}", f"chain={trained / 'sft_on_pt'}"]))
    assert [len(outfit.wears) for outfit in apart.variants.values()] == [0, 1, 2]
    for name in ("pt", "chain"):
        first, second = (w.logprobs(w.variants[name].wears, batch) for w in (both, apart))
        torch.testing.assert_close(first, second, atol=2e-4, rtol=0)


def test_without_variants_the_model_wears_its_adapters(eval_config, trained, batch):
    bare = load_wearing(eval_config())
    dressed = load_wearing(eval_config(adapter_name_or_path=str(trained / "sft")))
    named = load_wearing(eval_config(variants=["base", f"sft={trained / 'sft'}"]))
    assert list(bare.variants) == list(dressed.variants) == ["model"]
    assert bare.reward is None
    found = dressed.logprobs(dressed.variants["model"].wears, batch)
    torch.testing.assert_close(found, named.logprobs(named.variants["sft"].wears, batch), atol=2e-4, rtol=0)


def test_the_reward_scores_the_last_token_on_its_own_chain(eval_config, trained, tiny_llama, batch):
    wardrobe = load_wearing(eval_config(variants=["base"], reward_model=str(trained / "rm_on_sft")))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for folder in ("sft", "rm_on_sft"):
        model = PeftModel.from_pretrained(model, trained / folder).merge_and_unload()
    head = wardrobe.reward.head
    expected = []
    for b, length in enumerate(batch.lengths.tolist()):
        with torch.no_grad():
            out = model(batch.input_ids[b : b + 1, :length], output_hidden_states=True)
            expected.append(head(out.hidden_states[-1][0, -1]))
    torch.testing.assert_close(wardrobe.scores(wardrobe.reward, batch), torch.stack(expected), atol=2e-4, rtol=0)


def test_micro_batches_change_nothing(eval_config, trained, batch):
    keys = {"variants": ["base", f"sft={trained / 'sft'}"], "reward_model": str(trained / "rm")}
    whole, cut = load_wearing(eval_config(**keys)), load_wearing(eval_config(**keys, max_tokens_per_microbatch=4))
    names = whole.variants["sft"].wears
    torch.testing.assert_close(whole.logprobs(names, batch), cut.logprobs(names, batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.scores(whole.reward, batch), cut.scores(cut.reward, batch), atol=1e-5, rtol=0)


def test_only_what_ppo_made_has_a_reference(eval_config, trained, ppo_folder):
    variants = ["base", f"pt={trained / 'pt'}", f"sft={trained / 'sft_on_pt'}", f"ppo={ppo_folder}"]
    wardrobe = load_wearing(eval_config(variants=variants))
    assert [outfit.reference for outfit in wardrobe.variants.values()][:3] == [None, None, None]
    assert wardrobe.variants["ppo"].reference == wardrobe.variants["pt"].wears


def test_a_reference_that_is_folded_is_the_bare_backbone(eval_config, trained, ppo_folder):
    wardrobe = load_wearing(eval_config(variants=[f"pt={trained / 'pt'}", f"ppo={ppo_folder}"]))
    assert wardrobe.variants["ppo"].reference == ()
    alone = load_wearing(eval_config(adapter_name_or_path=str(ppo_folder)))
    assert alone.variants["model"].reference is not None


@pytest.mark.parametrize(
    ("variants", "words"),
    [(["=x"], "not name=folder"), (["sft="], "not name=folder"), (["a=x", "a=y"], "there twice")],
)
def test_malformed_variants_are_refused(eval_config, variants, words):
    with pytest.raises(UserError, match=words):
        variant_folders(eval_config(variants=variants))


def test_several_folders_stand_on_those_of_the_configuration(eval_config):
    config = eval_config(variants=["base", "two=a + b"], adapter_name_or_path="first")
    assert variant_folders(config) == {"base": ("first",), "two": ("first", "a", "b")}


def test_a_reward_folder_without_its_head_is_refused(eval_config, trained):
    with pytest.raises(UserError, match="no reward head"):
        load_wearing(eval_config(reward_model=str(trained / "sft")))


def test_an_adapter_of_another_backbone_is_refused_unless_allowed(eval_config, trained, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(trained / "sft", folder)
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    lineage["base"]["fingerprint"] = "0" * 64
    (folder / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    with pytest.raises(UserError, match="other weights"):
        load_wearing(eval_config(variants=["base", f"sft={folder}"]))
    wardrobe = load_wearing(eval_config(variants=["base", f"sft={folder}"], allow_mismatch=True))
    assert "used all the same" in wardrobe.notes[0]


def test_an_adapter_without_lineage_goes_by_the_name_of_its_base(eval_config, trained, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(trained / "rm", folder)
    (folder / "lineage.json").unlink()
    wardrobe = load_wearing(eval_config(reward_model=str(folder)))
    assert any("does not record" in note for note in wardrobe.notes)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "someone/another-model"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"reward_model: .*foreign names someone/another-model .*allow_mismatch: true"):
        load_wearing(eval_config(reward_model=str(folder)))
