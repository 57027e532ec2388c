"""The role table: who wears what, what trains, and that no order of calls can blur it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.models.adapters import adapter_parameters, add_adapter, lora_config
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.load import disable_dropout
from posttrain.models.roles import Costume, SharedRoles
from posttrain.types import Role

TABLE = {
    Role.REFERENCE: Costume(wears=("sft",), head="lm_head"),
    Role.ACTOR: Costume(wears=("sft", "actor"), head="lm_head", trains="actor"),
    Role.REWARD: Costume(wears=("reward",), head="score"),
    Role.CRITIC: Costume(wears=("reward", "critic"), head="value", trains="critic"),
}
SHARED = {**TABLE, Role.CRITIC: Costume(wears=("sft", "actor"), head="value", trains="actor")}
ROWS = [[9] * 9 + [10, 11], [9] * 9 + [12], [20, 21, 22, 23]]


def make_roles(make_model, table=TABLE, family="llama", checkpointing=False):
    model = make_model(family)
    generator = torch.Generator().manual_seed(4)
    config = lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",))
    for name in ("sft", "actor", "reward", "critic"):
        add_adapter(model, name, config)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name).values():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.requires_grad_(False)
    disable_dropout(model)
    prepare_trunk(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    score, value = ScalarHead(32, "score", generator=generator), ScalarHead(32, "value")
    with torch.no_grad():
        value.weight.normal_(generator=generator)
    return SharedRoles(model, table, {"score": score, "value": value}).train()


def expected_trainable(roles, table):
    """Names straight from the table: the adapters it trains, and the value head."""
    trained = {costume.trains for costume in table.values()} - {None}
    names = {name for name, _ in roles.named_parameters() for adapter in trained if f".{adapter}." in name}
    return names | {"heads.value.weight", "heads.value.bias"}


def trainable(roles):
    return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}


def with_gradient(roles):
    return {name for name, p in roles.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def total(out):
    columns = [c for c in (out.logprobs, out.entropy, out.values, out.scores) if c is not None]
    return sum((column * torch.arange(1.0, column.numel() + 1).view_as(column)).sum() for column in columns)


calls = st.lists(
    st.tuples(st.sampled_from(["forward", "backward", "sample", "sample and fail"]), st.sampled_from(list(Role))),
    max_size=6,
)


@pytest.mark.parametrize("table", [TABLE, SHARED], ids=["critic adapter", "value head"])
@pytest.mark.parametrize("checkpointing", [False, True])
@settings(deadline=None, max_examples=8)
@given(sequence=calls, last=st.sampled_from([Role.ACTOR, Role.CRITIC]))
def test_what_trains_is_the_table_after_any_sequence(
    make_model, make_batch, table, checkpointing, sequence, last
) -> None:
    roles = make_roles(make_model, table, checkpointing=checkpointing)
    batch = make_batch(ROWS)
    expected = expected_trainable(roles, table)
    frozen = {n: p.detach().clone() for n, p in roles.named_parameters() if n not in expected}
    for action, role in sequence:
        if action in ("forward", "backward"):
            with roles.wearing(role):
                out = total(roles(batch, (role,)))
                if action == "backward" and out.requires_grad:
                    out.backward()
        elif action == "sample":
            with roles.sampling_as(role):
                pass
        else:
            with pytest.raises(KeyboardInterrupt), roles.sampling_as(role):
                raise KeyboardInterrupt
            continue  # the table is applied at the next switch
        assert trainable(roles) == expected
        assert roles.backbone.training
    roles.zero_grad()
    with roles.wearing(last):
        total(roles(batch, (last,))).backward()
    assert trainable(roles) == expected
    assert with_gradient(roles) == set(roles.parameters_of(last)) - (
        {"heads.value.weight", "heads.value.bias"} if last is Role.ACTOR else set()
    )
    assert all(torch.equal(p, frozen[n]) for n, p in roles.named_parameters() if n in frozen)


@pytest.mark.parametrize("table", [TABLE, SHARED], ids=["critic adapter", "value head"])
def test_actor_and_critic_in_one_step(make_model, make_batch, table) -> None:
    """Both backward passes of a step leave their gradients, with activation checkpointing as without."""
    batch = make_batch(ROWS)
    found = []
    for checkpointing in (False, True):
        roles = make_roles(make_model, table, checkpointing=checkpointing)
        for group in roles.together((Role.ACTOR, Role.CRITIC)):
            with roles.wearing(group[0]):
                total(roles(batch, group)).backward()
        assert with_gradient(roles) == expected_trainable(roles, table)
        found.append({n: p.grad for n, p in roles.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_the_parent_under_the_actor_stays_frozen(make_model, make_batch) -> None:
    """peft un-freezes whatever it activates; the table wins."""
    roles = make_roles(make_model)
    with roles.wearing(Role.ACTOR):
        total(roles(make_batch(ROWS), (Role.ACTOR,))).backward()
    parent = adapter_parameters(roles.backbone, "sft")
    assert parent
    assert not any(p.requires_grad or p.grad is not None for p in parent.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_role_answers_in_its_own_costume(make_model, make_batch, family) -> None:
    """What a role says does not depend on who spoke before it, and differs from what others say."""
    roles = make_roles(make_model, family=family)
    batch = make_batch(ROWS)
    alone = {}
    for role in Role:
        fresh = make_roles(make_model, family=family)
        alone[role] = total(fresh(batch, (role,))).detach()
    for role in (*reversed(Role), *Role):
        assert torch.equal(total(roles(batch, (role,))).detach(), alone[role])
    assert alone[Role.ACTOR] != alone[Role.REFERENCE]


def test_which_field_each_role_fills(make_model, make_batch) -> None:
    roles = make_roles(make_model)
    batch = make_batch(ROWS)
    filled = {role: {k for k, v in vars(roles(batch, (role,))).items() if v is not None} for role in Role}
    assert filled == {
        Role.ACTOR: {"logprobs", "entropy"},
        Role.REFERENCE: {"logprobs", "entropy"},
        Role.CRITIC: {"values"},
        Role.REWARD: {"scores"},
    }


def counting(model):
    """Count the forwards of the trunk."""
    seen = []
    model.get_decoder().register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_a_value_head_shares_one_forward(make_model, make_batch) -> None:
    for table, forwards in ((SHARED, 1), (TABLE, 2)):
        roles = make_roles(make_model, table)
        seen = counting(roles.backbone)
        groups = roles.together((Role.ACTOR, Role.CRITIC))
        for group in groups:
            roles(make_batch(ROWS), group)
        assert len(seen) == len(groups) == forwards
    assert make_roles(make_model, SHARED).together(tuple(Role)) == [
        *((Role.ACTOR, Role.CRITIC), (Role.REFERENCE,), (Role.REWARD,))
    ]


def test_one_forward_for_both_says_what_two_would(make_model, make_batch) -> None:
    roles, batch = make_roles(make_model, SHARED), make_batch(ROWS)
    both = roles(batch, (Role.ACTOR, Role.CRITIC))
    torch.testing.assert_close(both.logprobs, roles(batch, (Role.ACTOR,)).logprobs)
    torch.testing.assert_close(both.values, roles(batch, (Role.CRITIC,)).values)


def test_roles_in_different_costumes_cannot_share(make_model, make_batch) -> None:
    roles = make_roles(make_model)
    with pytest.raises(ValueError, match=r"actor, critic wear different adapters"):
        roles(make_batch(ROWS), (Role.ACTOR, Role.CRITIC))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("role", list(Role))
def test_sampling_weights_are_the_roles_and_leave_no_trace(make_model, make_batch, family, role) -> None:
    roles, batch = make_roles(make_model, family=family), make_batch(ROWS)
    before = {name: p.detach().clone() for name, p in roles.named_parameters()}
    wears = roles.costumes[role].wears
    bare = SharedRoles(roles.backbone, {Role.ACTOR: Costume(wears=wears, head="lm_head")}, {})
    worn = bare(batch, (Role.ACTOR,)).logprobs
    for _ in range(2):
        with roles.sampling_as(role) as model:
            assert not model.training
            plain = SharedRoles(model, {Role.ACTOR: Costume(wears=(), head="lm_head")}, {})
            torch.testing.assert_close(plain(batch, (Role.ACTOR,)).logprobs, worn, atol=1e-5, rtol=1e-5)
            roles._worn = None
    assert all(torch.equal(before[name], p) for name, p in roles.named_parameters())
    assert roles.backbone.training


def test_temperature_reaches_the_head(make_model, make_batch) -> None:
    roles, batch = make_roles(make_model), make_batch(ROWS)
    cold, hot = (roles(batch, (Role.ACTOR,), temperature=t) for t in (1.0, 3.0))
    counted = batch.loss_mask
    assert (hot.entropy[counted] > cold.entropy[counted]).all()


def test_full_fine_tuning_needs_no_adapter(make_model, make_batch) -> None:
    model = make_model()
    prepare_trunk(model)
    names = frozenset({"model.layers.1.mlp.up_proj.weight", "lm_head.weight"})
    table = {Role.ACTOR: Costume(wears=(), head="lm_head", trains="base")}
    roles = SharedRoles(model, table, {}, base_trains=names).train()
    assert trainable(roles) == {f"backbone.{name}" for name in names} == set(roles.parameters_of(Role.ACTOR))
    with roles.sampling_as(Role.ACTOR) as sampled:
        assert sampled is model
    total(roles(make_batch(ROWS), (Role.ACTOR,))).backward()
    assert with_gradient(roles) == {f"backbone.{name}" for name in names}
