"""Roles over several models from a configuration: rewards on other backbones, whole reward models, full training."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from posttrain.errors import UserError
from posttrain.models.adapters import adapter_parameters
from posttrain.models.assemble import online_assembly
from posttrain.models.heads import ScalarHead
from posttrain.models.load import load_tokenizer
from posttrain.models.roles import SharedRoles
from posttrain.models.separate import SeparateRoles
from posttrain.types import Role

ROWS = [[1, 50, 60, 70, 80, 90, 100, 110, 120, 2], [1, 50, 60, 70, 80, 90, 100, 110, 130, 131, 2], [1, 200, 201]]
FULL = {"finetuning_type": "full", "critic": "model"}


@pytest.fixture
def batch(make_batch):
    return make_batch(ROWS)


@pytest.fixture
def ppo(tiny_config, trained, tmp_path):
    def make(**keys):
        return online_assembly(tiny_config("ppo", tmp_path / "out", **{"reward_model": str(trained / "rm"), **keys}))

    return make


def says(assembly, role, batch):
    with torch.no_grad():
        out = assembly.roles(batch, (role,))
    return out.scores if role is Role.REWARD else out.values if role is Role.CRITIC else out.logprobs


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def foreign(trained, tmp_path):
    """A model that another program merged: the same weights as ``merged``, and no lineage."""
    folder = tmp_path / "foreign"
    shutil.copytree(trained / "merged", folder)
    (folder / "lineage.json").unlink()
    return folder


@pytest.fixture
def whole_reward(tiny_llama, tmp_path):
    """A reward model that is a whole model, a wider one, with its head beside it."""
    folder = tmp_path / "whole"
    shutil.copytree(tiny_llama, folder)
    config = LlamaConfig.from_pretrained(tiny_llama, hidden_size=48, num_attention_heads=4, intermediate_size=40)
    torch.manual_seed(21)
    LlamaForCausalLM(config).save_pretrained(folder)
    ScalarHead(48, "score").save(folder)
    return folder


def rename_base(source, folder, base):
    """A copy of an adapter that records another place for its base."""
    shutil.copytree(source, folder)
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    lineage["base"]["name_or_path"] = str(base)
    (folder / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
    return str(folder)


def test_the_first_way_is_one_backbone(ppo, trained) -> None:
    assert isinstance(ppo(model_name_or_path=str(trained / "merged")).roles, SharedRoles)


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_the_second_way_is_the_rewards_own_backbone_beside(ppo, trained, foreign, batch, critic) -> None:
    """Without lineage the merged model is another backbone; with it one is enough, and both say the same."""
    alone = ppo(model_name_or_path=str(trained / "merged"), critic=critic)
    assembly = ppo(model_name_or_path=str(foreign), critic=critic)
    assert isinstance(assembly.roles, SeparateRoles)
    for role in Role:
        close(says(assembly, role, batch), says(alone, role, batch))
    home = assembly.roles.backbone_of
    assert home(Role.REFERENCE) is home(Role.ACTOR)
    assert home(Role.REWARD) is not home(Role.ACTOR)
    assert home(Role.CRITIC) is home(Role.REWARD if critic == "adapter" else Role.ACTOR)
    note = next(note for note in assembly.notes if "a second backbone is in memory" in note)
    size = sum(p.numel() * p.element_size() for p in home(Role.REWARD).parameters()) / 1e6
    assert note.endswith(f"{size:.1f} MB more.")
    assert ("and the critic with it" in note) == (critic == "adapter")
    trains = set(assembly.roles.parameters_of(Role.ACTOR)) | set(assembly.roles.parameters_of(Role.CRITIC))
    assert {name for name, p in assembly.roles.named_parameters() if p.requires_grad} == trains


def test_the_third_way_is_a_refusal(ppo, tiny_llama, trained, foreign, tmp_path) -> None:
    """Both names and the key that goes on all the same; also where the named base is no longer what it was."""
    gone = rename_base(trained / "rm", tmp_path / "rm_gone", tmp_path / "gone")
    pattern = r"^reward_model: .*rm_gone was trained on .*gone .*but the backbone is .*foreign.*allow_mismatch: true.*"
    with pytest.raises(UserError, match=pattern + "is not there to be loaded beside it"):
        ppo(model_name_or_path=str(foreign), reward_model=gone)
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.5)
    model.save_pretrained(other)
    changed = rename_base(trained / "rm", tmp_path / "rm_changed", other)
    with pytest.raises(UserError, match=r"allow_mismatch: true.*other have changed since"):
        ppo(model_name_or_path=str(foreign), reward_model=changed)
    assert isinstance(ppo(model_name_or_path=str(foreign), reward_model=gone, allow_mismatch=True).roles, SharedRoles)


def test_a_reward_that_reads_other_tokens_is_refused(ppo, whole_reward) -> None:
    path = whole_reward / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UserError, match=r"^reward_model: .*whole has another vocabulary than .*\(2 of \d+ tokens"):
        ppo(reward_model=str(whole_reward))


@pytest.mark.parametrize("keys", [{"critic": "value_head"}, {"critic": "adapter"}, FULL])
def test_a_whole_reward_model(ppo, tiny_llama, whole_reward, batch, keys) -> None:
    """Of another width than the actor; a critic of its own starts as it: token t's value is the score of what is
    before it.
    """
    assembly = ppo(reward_model=str(whole_reward), reward_model_type="full", **keys)
    model = AutoModelForCausalLM.from_pretrained(whole_reward)
    with torch.no_grad():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True)
        every = ScalarHead.load(whole_reward, 48)(out.hidden_states[-1])
    close(says(assembly, Role.REWARD, batch), every[torch.arange(len(batch)), batch.lengths - 1])
    values = says(assembly, Role.CRITIC, batch)
    if keys["critic"] == "value_head":
        assert values.abs().max() == 0
        assert not assembly.critic_from_reward
    else:
        mask = batch.loss_mask.clone()
        mask[:, 0] = False
        close(values[:, 1:][mask[:, 1:]], every[:, :-1][mask[:, 1:]])
        assert assembly.critic_from_reward


def test_what_reward_model_type_says_must_be_so(ppo, whole_reward) -> None:
    with pytest.raises(UserError, match=r"reward_model_type: full means a whole model, but .*rm is an adapter"):
        ppo(reward_model_type="full")
    with pytest.raises(UserError, match=r"reward_model_type: lora means an adapter, but .*whole is a whole model"):
        ppo(reward_model=str(whole_reward), reward_model_type="lora")


@pytest.mark.parametrize("start", ["base", "merged"])
def test_full_fine_tuning_begins_as_adapters_do(ppo, tiny_llama, trained, batch, start) -> None:
    """The same log-probabilities, scores and first values; frozen roles share one model, those that train do not."""
    keys = {"model_name_or_path": str(trained / "merged")} if start == "merged" else {}
    assembly, adapters = ppo(**FULL, **keys), ppo(critic="adapter", **keys)
    for role in Role:
        close(says(assembly, role, batch), says(adapters, role, batch))
    home = assembly.roles.backbone_of
    assert home(Role.REFERENCE) is home(Role.REWARD)
    assert len({id(home(role)) for role in Role}) == 3
    actor = {f"members.actor.backbone.{name}" for name, _ in home(Role.ACTOR).named_parameters()}
    critic = {f"members.critic.backbone.{name}" for name, _ in home(Role.CRITIC).named_parameters()}
    critic = {name for name in critic if "lm_head" not in name}
    critic |= {"members.critic.heads.value.weight", "members.critic.heads.value.bias"}
    assert set(assembly.roles.parameters_of(Role.ACTOR)) == actor
    assert set(assembly.roles.parameters_of(Role.CRITIC)) == critic
    assert {name for name, p in assembly.roles.named_parameters() if p.requires_grad} == actor | critic
    assert any("holds 3 models in memory" in note and "reference and reward" in note for note in assembly.notes)


def test_full_fine_tuning_saves_the_whole_actor(ppo, tiny_llama, batch, tmp_path) -> None:
    assembly = ppo(**FULL)
    with torch.no_grad():
        for parameter in assembly.roles.parameters_of(Role.ACTOR).values():
            parameter.add_(0.01)
    assembly.save(tmp_path / "saved", load_tokenizer(tiny_llama))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    found = torch.zeros(batch.input_ids.shape)
    found[:, 1:] = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    close(found * batch.loss_mask, says(assembly, Role.ACTOR, batch))
    assert not (tmp_path / "saved" / "value_head.safetensors").exists()
    assert not list((tmp_path / "saved").glob("adapter*"))
    assert not adapter_parameters(assembly.roles.backbone_of(Role.ACTOR), "actor")


def test_a_value_head_on_a_fully_trained_actor_shares_its_forward(ppo) -> None:
    roles = ppo(finetuning_type="full").roles
    assert roles.together((Role.ACTOR, Role.CRITIC)) == [(Role.ACTOR, Role.CRITIC)]
    actor, critic = roles.parameters_of(Role.ACTOR), roles.parameters_of(Role.CRITIC)
    assert set(critic) - set(actor) == {"members.actor.heads.value.weight", "members.actor.heads.value.bias"}


def test_freezing_trains_the_layers_it_names(ppo) -> None:
    roles = ppo(finetuning_type="freeze", freeze_trainable_layers=1, critic="model").roles
    for role in (Role.ACTOR, Role.CRITIC):
        layers = {name for name in roles.parameters_of(role) if "backbone" in name}
        assert layers
        assert all(name.startswith(f"members.{role}.backbone.model.layers.1.") for name in layers)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_value_head_starts_at_zero(ppo, batch, kind) -> None:
    assert says(ppo(critic="value_head", finetuning_type=kind), Role.CRITIC, batch).abs().max() == 0
