"""From configuration to roles: every way to stand on a base, an adapter or a merged model, compared with peft."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from posttrain.errors import UserError
from posttrain.models import backbone, trunks
from posttrain.models.adapters import adapter_parameters
from posttrain.models.assemble import offline_assembly, online_assembly
from posttrain.models.forward import is_packed
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import fingerprint, read_lineage
from posttrain.models.load import load_tokenizer
from posttrain.models.roles import Costume
from posttrain.types import Role

ROWS = [[1, 50, 60, 70, 80, 90, 100, 110, 120, 2], [1, 50, 60, 70, 80, 90, 100, 110, 130, 131, 2], [1, 200, 201]]


@pytest.fixture
def batch(make_batch):
    return make_batch(ROWS)


def plain(folder, *adapters):
    """transformers and peft alone: the model in ``folder`` wearing the last adapter, those before it merged in."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for adapter in adapters[:-1]:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return PeftModel.from_pretrained(model, adapters[-1]).eval() if adapters else model.eval()


def plain_logprobs(model, batch):
    """[B, T] by whole logits of a padded forward."""
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    found = torch.zeros(batch.input_ids.shape)
    found[:, 1:] = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return found * batch.loss_mask


def plain_scores(model, folder, batch):
    with torch.no_grad():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
        last = out.hidden_states[-1][torch.arange(len(batch)), batch.lengths - 1]
        return ScalarHead.load(folder, 32)(last)


def says(assembly, role, batch):
    with torch.no_grad():
        out = assembly.roles(batch, (role,))
    return out.scores if role is Role.REWARD else out.values if role is Role.CRITIC else out.logprobs


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def ppo(tiny_config, trained, tmp_path):
    """Assemble PPO with keys of the configuration; the reward is the one trained on the base."""

    def make(**keys):
        return online_assembly(tiny_config("ppo", tmp_path / "out", **{"reward_model": str(trained / "rm"), **keys}))

    return make


def move(assembly):
    """Give the trained adapter something to say."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in adapter_parameters(assembly.roles.backbone, assembly.own).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_the_adapters_of_the_fixture_matter(tiny_llama, trained, batch) -> None:
    """Else every comparison below would hold whatever is worn."""
    base = plain_logprobs(plain(tiny_llama), batch)
    for name in ("pt", "sft", "rm", "sft_on_pt", "rm_on_sft"):
        assert (plain_logprobs(plain(tiny_llama, trained / name), batch) - base).abs().max() > 0.05


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_ppo_on_an_unmerged_sft_adapter(ppo, tiny_llama, trained, batch, critic) -> None:
    assembly = ppo(adapter_name_or_path=str(trained / "sft"), critic=critic)
    expected = plain_logprobs(plain(tiny_llama, trained / "sft"), batch)
    close(says(assembly, Role.REFERENCE, batch), expected)
    close(says(assembly, Role.ACTOR, batch), expected)
    rewarding = plain(tiny_llama, trained / "rm")
    close(says(assembly, Role.REWARD, batch), plain_scores(rewarding, trained / "rm", batch), 1e-6)
    assert assembly.notes == ()
    assert assembly.roles.costumes[Role.CRITIC].trains == ("critic" if critic == "adapter" else "actor")


def test_ppo_on_the_base(ppo, tiny_llama, batch) -> None:
    assembly = ppo()
    close(says(assembly, Role.REFERENCE, batch), plain_logprobs(plain(tiny_llama), batch))
    assert assembly.lineage.parents == ()


def test_ppo_on_a_merged_model_with_a_reward_trained_on_its_base(ppo, tiny_llama, trained, batch) -> None:
    """One backbone, the base, carries the merged model for the actor and what the reward was trained on, exactly."""
    assembly = ppo(model_name_or_path=str(trained / "merged"))
    merged = plain(trained / "merged")
    close(says(assembly, Role.REFERENCE, batch), plain_logprobs(merged, batch))
    close(says(assembly, Role.ACTOR, batch), plain_logprobs(merged, batch))
    on_base = plain_scores(plain(tiny_llama, trained / "rm"), trained / "rm", batch)
    close(says(assembly, Role.REWARD, batch), on_base, 1e-6)
    on_merged = plain_scores(plain(trained / "merged", trained / "rm"), trained / "rm", batch)
    assert (on_base - on_merged).abs().max() > 1e-3  # what a reward put on the merged model would have said
    assert fingerprint(assembly.roles.backbone) == fingerprint(plain(tiny_llama))
    assert len(assembly.notes) == 1
    assert "one backbone in memory serves all four roles" in assembly.notes[0]


@pytest.mark.parametrize("start", ["merged", "adapter"])
def test_what_ppo_saves_stands_on_the_merged_model(ppo, tiny_llama, trained, batch, start, tmp_path) -> None:
    keys = {"model_name_or_path": str(trained / "merged")}
    if start == "adapter":
        keys = {"adapter_name_or_path": str(trained / "sft")}
    assembly = ppo(**keys)
    move(assembly)
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    actor = says(assembly, Role.ACTOR, batch)
    close(plain_logprobs(plain(trained / "merged", tmp_path / "saved"), batch), actor)
    close(plain_logprobs(plain(tiny_llama, trained / "sft", tmp_path / "saved"), batch), actor)
    recorded = json.loads((tmp_path / "saved" / "adapter_config.json").read_text(encoding="utf-8"))
    lineage = read_lineage(tmp_path / "saved")
    if start == "merged":
        assert recorded["base_model_name_or_path"] == str(trained / "merged") == lineage.base.name_or_path
        assert lineage.base.fingerprint == fingerprint(plain(trained / "merged"))
        assert lineage.parents == ()
    else:
        assert recorded["base_model_name_or_path"] == str(tiny_llama) == lineage.base.name_or_path
        assert [Path(parent.path).name for parent in lineage.parents] == ["sft"]
    assert not (tmp_path / "saved" / "value_head.safetensors").exists()


@pytest.mark.parametrize("start", ["merged", "adapter"])
def test_what_ppo_saved_is_accepted_where_it_belongs(ppo, tiny_config, tiny_llama, trained, batch, start, tmp_path):
    keys = {"model_name_or_path": str(trained / "merged")}
    if start == "adapter":
        keys = {"adapter_name_or_path": str(trained / "sft")}
    assembly = ppo(**keys)
    move(assembly)
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    keys["adapter_name_or_path"] = str(tmp_path / "saved")
    again = offline_assembly(tiny_config("sft", tmp_path / "next", **keys))
    close(says(again, Role.ACTOR, batch), says(assembly, Role.ACTOR, batch))


def test_the_chain_from_pretraining_to_ppo(ppo, tiny_llama, trained, batch) -> None:
    assembly = ppo(adapter_name_or_path=str(trained / "sft_on_pt"))
    expected = plain_logprobs(plain(tiny_llama, trained / "pt", trained / "sft_on_pt"), batch)
    close(says(assembly, Role.REFERENCE, batch), expected)
    assert [Path(parent.path).name for parent in assembly.lineage.parents] == ["pt", "sft_on_pt"]
    close(
        says(assembly, Role.REWARD, batch), plain_scores(plain(tiny_llama, trained / "rm"), trained / "rm", batch), 1e-6
    )


@pytest.mark.parametrize("start", ["merged", "adapter", "base"])
def test_a_reward_that_stands_on_the_sft_adapter(ppo, tiny_llama, trained, batch, start) -> None:
    """Parents that actor and reward share are added to the backbone once; the others are worn."""
    keys = {"merged": {"model_name_or_path": str(trained / "merged")}, "base": {}}
    keys["adapter"] = {"adapter_name_or_path": str(trained / "sft")}
    assembly = ppo(reward_model=str(trained / "rm_on_sft"), **keys[start])
    scoring = plain(tiny_llama, trained / "sft", trained / "rm_on_sft")
    close(says(assembly, Role.REWARD, batch), plain_scores(scoring, trained / "rm_on_sft", batch), 1e-5)
    expected = plain(tiny_llama) if start == "base" else plain(trained / "merged")
    close(says(assembly, Role.REFERENCE, batch), plain_logprobs(expected, batch))
    assert assembly.roles.costumes[Role.REFERENCE].wears == ()
    assert len(assembly.roles.costumes[Role.REWARD].wears) == (2 if start == "base" else 1)


def test_a_critic_adapter_starts_from_the_rewards_scores(ppo, trained, batch) -> None:
    assembly = ppo(critic="adapter", adapter_name_or_path=str(trained / "sft"))
    values, scores = says(assembly, Role.CRITIC, batch), says(assembly, Role.REWARD, batch)
    # the value before token t is what the reward would say of the row cut off there
    for row in range(len(batch)):
        for t in (column for column in range(1, int(batch.lengths[row])) if batch.loss_mask[row, column]):
            with torch.no_grad():
                cut = batch.rows(torch.tensor([row]))
                short = type(cut)(
                    input_ids=cut.input_ids[:, :t],
                    attention_mask=cut.attention_mask[:, :t],
                    loss_mask=cut.loss_mask[:, :t],
                )
                close(assembly.roles(short, (Role.REWARD,)).scores[0], values[row, t])
    assert scores.isfinite().all()


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_a_reward_that_is_no_model_has_no_role(ppo, tiny_llama, trained, batch, critic) -> None:
    keys = {"reward_model": None, "reward_funcs": "sql_execution", "critic": critic}
    assembly = ppo(adapter_name_or_path=str(trained / "sft"), **keys)
    expected = plain_logprobs(plain(tiny_llama, trained / "sft"), batch)
    close(says(assembly, Role.REFERENCE, batch), expected)
    close(says(assembly, Role.ACTOR, batch), expected)
    assert says(assembly, Role.CRITIC, batch).abs().max() == 0
    assert set(assembly.roles.costumes) == {Role.ACTOR, Role.REFERENCE, Role.CRITIC}
    trained_by = {"value_head": "actor", "adapter": "critic"}[critic]
    assert assembly.roles.costumes[Role.CRITIC] == Costume(wears=(trained_by,), head="value", trains=trained_by)
    assert set(assembly.roles.heads) == {"value"}


@pytest.fixture
def stranger(tiny_llama, tmp_path):
    """The same architecture and tokenizer, other weights, no lineage."""
    folder = tmp_path / "stranger"
    shutil.copytree(tiny_llama, folder)
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.5)
    model.save_pretrained(folder)
    return folder


def test_another_backbone_is_refused_with_both_names(ppo, tiny_llama, trained, stranger) -> None:
    with pytest.raises(UserError) as error:
        ppo(model_name_or_path=str(stranger), adapter_name_or_path=str(trained / "sft"))
    message = str(error.value)
    assert message.startswith("adapter_name_or_path: ")
    assert str(tiny_llama) in message
    assert str(stranger) in message
    assert "allow_mismatch: true" in message


def test_allow_mismatch_goes_on_and_says_so(ppo, trained, stranger, batch) -> None:
    assembly = ppo(model_name_or_path=str(stranger), allow_mismatch=True)
    assert any("used all the same" in note for note in assembly.notes)
    scoring = plain(stranger, trained / "rm")
    close(says(assembly, Role.REWARD, batch), plain_scores(scoring, trained / "rm", batch), 1e-6)


def test_a_base_that_changed_under_a_merged_model(ppo, tiny_llama, trained, stranger, tmp_path) -> None:
    shutil.copytree(trained / "merged", tmp_path / "merged")
    lineage = json.loads((tmp_path / "merged" / "lineage.json").read_text(encoding="utf-8"))
    lineage["base"]["name_or_path"] = str(stranger)
    (tmp_path / "merged" / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    with pytest.raises(UserError, match=r"was merged from .*stranger, whose weights have changed since"):
        ppo(model_name_or_path=str(tmp_path / "merged"))


def test_a_reward_folder_without_head(ppo, trained) -> None:
    with pytest.raises(UserError, match=r"sft has no .*head: "):
        ppo(reward_model=str(trained / "sft"))


def test_dropout_is_off_in_an_online_stage(ppo, trained, batch, tmp_path) -> None:
    shutil.copytree(trained / "rm", tmp_path / "wet")
    config = json.loads((tmp_path / "wet" / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "wet" / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.5}), encoding="utf-8")
    assembly = ppo(reward_model=str(tmp_path / "wet"))
    assert is_packed(assembly.roles.backbone)
    assembly.roles.train()
    assert torch.equal(says(assembly, Role.REWARD, batch), says(assembly, Role.REWARD, batch))
    close(says(assembly, Role.REWARD, batch), says(ppo(), Role.REWARD, batch), 1e-6)


@pytest.fixture
def offline(tiny_config, tmp_path):
    def make(stage="sft", **keys):
        return offline_assembly(tiny_config(stage, tmp_path / "out", **keys))

    return make


def test_a_given_adapter_is_continued(offline, trained, tiny_llama, batch, tmp_path) -> None:
    assembly = offline(adapter_name_or_path=str(trained / "sft_on_pt"))
    expected = plain_logprobs(plain(tiny_llama, trained / "pt", trained / "sft_on_pt"), batch)
    close(says(assembly, Role.ACTOR, batch), expected)
    assert [Path(p.path).name for p in assembly.lineage.parents] == ["pt"]
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    close(plain_logprobs(plain(tiny_llama, trained / "pt", tmp_path / "saved"), batch), expected)


def test_or_a_new_one_is_put_on_top(offline, trained, tiny_llama, batch) -> None:
    assembly = offline(adapter_name_or_path=str(trained / "sft"), create_new_adapter=True)
    close(says(assembly, Role.ACTOR, batch), plain_logprobs(plain(tiny_llama, trained / "sft"), batch))
    assert [Path(p.path).name for p in assembly.lineage.parents] == ["sft"]
    with torch.no_grad():
        assert all((p == 0).all() for n, p in assembly.roles.parameters_of(Role.ACTOR).items() if ".lora_B." in n)


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_saved_adapters_load_with_peft(offline, tiny_llama, batch, tmp_path, stage) -> None:
    assembly = offline(stage)
    move(assembly)
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    assert (tmp_path / "saved" / "value_head.safetensors").exists() == (stage == "rm")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "saved").eval()
    if stage == "sft":
        close(plain_logprobs(model, batch), says(assembly, Role.ACTOR, batch))
    else:
        close(plain_scores(model, tmp_path / "saved", batch), says(assembly, Role.REWARD, batch))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_whole_model_loads_with_transformers(offline, tiny_llama, batch, tmp_path, stage) -> None:
    assembly = offline(stage, finetuning_type="full")
    with torch.no_grad():
        for parameter in assembly.roles.backbone.parameters():
            parameter.mul_(1.05)
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    model = plain(tmp_path / "saved")
    assert model.config._attn_implementation != "posttrain"
    if stage == "sft":
        close(plain_logprobs(model, batch), says(assembly, Role.ACTOR, batch))
    else:
        close(plain_scores(model, tmp_path / "saved", batch), says(assembly, Role.REWARD, batch))


def unrecorded(source, folder, base):
    """A copy of an adapter as another program leaves it: the name of its base, no lineage."""
    shutil.copytree(source, folder)
    (folder / "lineage.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ["reward_model", "adapter_name_or_path"])
def test_an_adapter_without_lineage_that_names_another_base_is_refused(ppo, tiny_llama, trained, key, tmp_path):
    source = trained / ("rm" if key == "reward_model" else "sft")
    foreign = unrecorded(source, tmp_path / "foreign", "Qwen/another-model")
    with pytest.raises(UserError, match=rf"^{key}: .*foreign names Qwen/another-model .*allow_mismatch: true") as error:
        ppo(**{key: str(foreign)})
    assert str(tiny_llama) in str(error.value)
    assembly = ppo(**{key: str(foreign)}, allow_mismatch=True)
    assert any("used all the same" in note for note in assembly.notes)


@pytest.mark.parametrize("name", ["", "{folder}", "someone/{name}", "E:\\models\\{name}"])
def test_an_adapter_without_lineage_that_may_fit_is_taken(offline, tiny_llama, trained, batch, name, tmp_path) -> None:
    named = name.format(folder=tiny_llama, name=tiny_llama.name)
    assembly = offline(adapter_name_or_path=str(unrecorded(trained / "sft", tmp_path / "foreign", named)))
    assert [note for note in assembly.notes if "does not record" in note]
    close(says(assembly, Role.ACTOR, batch), plain_logprobs(plain(tiny_llama, trained / "sft"), batch))


def test_a_reward_without_lineage_that_names_the_base_of_a_merged_model(ppo, tiny_llama, trained, batch, tmp_path):
    """It scores on that base, as a reward with lineage does, not on the merged weights."""
    rm = unrecorded(trained / "rm", tmp_path / "rm", tiny_llama)
    assembly = ppo(model_name_or_path=str(trained / "merged"), reward_model=str(rm))
    on_base = plain_scores(plain(tiny_llama, trained / "rm"), trained / "rm", batch)
    close(says(assembly, Role.REWARD, batch), on_base, 1e-6)
    close(says(assembly, Role.REFERENCE, batch), plain_logprobs(plain(trained / "merged"), batch))
    assert any("one backbone in memory serves all four roles" in note for note in assembly.notes)


def test_the_revision_is_the_models_and_not_its_bases(ppo, tiny_llama, trained, monkeypatch) -> None:
    asked = set()

    def resolve(name, *, revision="main", **_):
        asked.add((name, revision))
        return name

    for module in (trunks, backbone):
        monkeypatch.setattr(module, "resolve_model", resolve)
    ppo(model_name_or_path=str(trained / "merged"), model_revision="v2")
    assert asked == {(str(trained / "merged"), "v2"), (str(tiny_llama), "main")}


def test_keys_that_do_nothing_to_a_continued_adapter_are_named(offline, trained) -> None:
    keys = {"lora_rank": 16, "lora_alpha": 3, "lora_dropout": 0.25, "lora_target": "q_proj", "use_rslora": True}
    assembly = offline(adapter_name_or_path=str(trained / "sft"), **keys)
    named = [note.split(":")[0] for note in assembly.notes if "changes nothing" in note]
    assert sorted(named) == sorted(keys)
    assert any("lora_rank: 16" in note and "has 4" in note for note in assembly.notes)
    same = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target": "all", "use_rslora": False}
    assert offline(adapter_name_or_path=str(trained / "sft"), **same).notes == ()
    assert offline(adapter_name_or_path=str(trained / "sft"), create_new_adapter=True, **keys).notes == ()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
@pytest.mark.parametrize("keys", [{"stage": "rm"}, {"finetuning_type": "full"}])
def test_saved_files_have_the_mode_of_any_other_file(offline, tiny_llama, tmp_path, keys) -> None:
    assembly = offline(**keys)
    before = os.umask(0o027)
    try:
        assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert [name for name in modes if name.endswith(".safetensors")]
