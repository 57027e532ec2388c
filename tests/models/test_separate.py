"""Roles over several models: the same answers as over one, and gradients where the tables say."""

from __future__ import annotations

import copy

import pytest
import torch

from posttrain.models.adapters import adapter_parameters, add_adapter, fold, lora_config
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.load import disable_dropout
from posttrain.models.roles import Costume, SharedRoles
from posttrain.models.separate import SeparateRoles
from posttrain.types import Role

TABLE = {
    Role.REFERENCE: Costume(wears=("sft",), head="lm_head"),
    Role.ACTOR: Costume(wears=("sft", "actor"), head="lm_head", trains="actor"),
    Role.REWARD: Costume(wears=("reward",), head="score"),
    Role.CRITIC: Costume(wears=("reward", "critic"), head="value", trains="critic"),
}
ROWS = [[9] * 9 + [10, 11], [9] * 9 + [12], [20, 21, 22, 23]]
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
"""Float32: weight + adapter is rounded once when merged, and in every product when worn."""


def adapted(make_model, family):
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
    return model


def heads():
    generator = torch.Generator().manual_seed(6)
    score, value = ScalarHead(32, "score", generator=generator), ScalarHead(32, "value")
    with torch.no_grad():
        value.weight.normal_(generator=generator)
    return {"score": score, "value": value}


@pytest.fixture(params=["llama", "gpt2"])
def both(request, make_model):
    """One backbone with an adapter per role, and one model per role that holds the same weights merged."""
    shared = SharedRoles(adapted(make_model, request.param), TABLE, heads()).train()
    members, own = {}, heads()
    for role, costume in TABLE.items():
        model = copy.deepcopy(shared.backbone)
        fold(model, costume.wears)
        for other in {"sft", "actor", "reward", "critic"} - set(costume.wears):
            fold_away(model, other)
        table = {role: Costume(wears=(), head=costume.head, trains="base" if costume.trains else None)}
        base = frozenset(name for name, _ in model.named_parameters()) if costume.trains else frozenset()
        head = {name: own[name] for name in own if name == costume.head}
        members[str(role)] = SharedRoles(model, table, head, base_trains=base)
    return shared, SeparateRoles(members).train()


def fold_away(model, name):
    from peft.functional import delete_adapter

    delete_adapter(model, name, prefix="lora_")


def total(out):
    columns = [c for c in (out.logprobs, out.entropy, out.values, out.scores) if c is not None]
    return sum((column * torch.arange(1.0, column.numel() + 1).view_as(column)).sum() for column in columns)


def test_merged_weights_say_what_adapters_say(both, make_batch) -> None:
    shared, _ = both
    batch = make_batch(ROWS)
    for role in Role:
        one, other = (roles(batch, (role,), temperature=0.7) for roles in both)
        assert [k for k, v in vars(one).items() if v is not None] == [
            k for k, v in vars(other).items() if v is not None
        ]
        for name, column in vars(one).items():
            if column is not None:
                torch.testing.assert_close(getattr(other, name), column, **TOLERANCE)
    answers = [total(shared(batch, (role,))) for role in Role]
    assert len({round(float(answer.detach()), 3) for answer in answers}) == len(answers)


def test_gradients_reach_what_each_role_trains_and_nothing_else(both, make_batch) -> None:
    _, separate = both
    batch = make_batch(ROWS)
    groups = separate.together((Role.ACTOR, Role.CRITIC))
    assert groups == [(Role.ACTOR,), (Role.CRITIC,)]
    for group in groups:
        with separate.wearing(group[0]):
            total(separate(batch, group)).backward()
        found = {n for n, p in separate.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        # a critic's output head answers nobody
        expected = {n for n in separate.parameters_of(group[0]) if group[0] is Role.ACTOR or "lm_head" not in n}
        unused = {n for n in expected if "wpe" in n}
        assert expected - unused <= found <= set(separate.parameters_of(group[0]))
        separate.zero_grad()
    named = dict(separate.named_parameters())
    trains = separate.parameters_of(Role.ACTOR) | separate.parameters_of(Role.CRITIC)
    assert all(named[name] is parameter for name, parameter in trains.items())
    assert {name for name, parameter in named.items() if parameter.requires_grad} == set(trains)
    assert not separate.parameters_of(Role.REFERENCE)
    assert not separate.parameters_of(Role.REWARD)


def test_the_gradient_of_a_shared_head_input_is_the_same(both, make_batch) -> None:
    """The value head's gradient, through merged weights as through adapters."""
    batch = make_batch(ROWS)
    found = []
    for roles in both:
        with roles.wearing(Role.CRITIC):
            total(roles(batch, (Role.CRITIC,))).backward()
        found.append([p.grad for n, p in sorted(roles.parameters_of(Role.CRITIC).items()) if "heads.value" in n])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-4)


def test_both_kinds_answer_the_same_questions(both) -> None:
    for roles in both:
        assert all(role in roles for role in Role)
        assert roles.head("value").kind == "value"
        assert roles.head("score").kind == "score"
        with roles.sampling_as(Role.ACTOR) as model:
            assert model is roles.backbone_of(Role.ACTOR)
            assert not model.training
        assert roles.backbone_of(Role.ACTOR).training
    assert both[1].backbone_of(Role.ACTOR) is not both[1].backbone_of(Role.REFERENCE)


def test_roles_on_different_models_cannot_share_a_forward(both, make_batch) -> None:
    with pytest.raises(ValueError, match=r"roles actor, critic live on different models"):
        both[1](make_batch(ROWS), (Role.ACTOR, Role.CRITIC))


def test_a_member_may_hold_several_roles(make_model, make_batch) -> None:
    """A frozen backbone that reference and reward share, a value head on the trained actor's trunk."""
    actor, own = make_model(), heads()
    prepare_trunk(actor)
    base = frozenset(name for name, _ in actor.named_parameters())
    table = {
        role: Costume(wears=(), head=head, trains="base")
        for role, head in ((Role.ACTOR, "lm_head"), (Role.CRITIC, "value"))
    }
    frozen = {role: TABLE[role] for role in (Role.REFERENCE, Role.REWARD)}
    roles = SeparateRoles(
        {
            "actor": SharedRoles(actor, table, {"value": own["value"]}, base_trains=base),
            "frozen": SharedRoles(adapted(make_model, "llama"), frozen, {"score": own["score"]}),
        }
    )
    assert roles.together(tuple(Role)) == [(Role.ACTOR, Role.CRITIC), (Role.REFERENCE,), (Role.REWARD,)]
    out = roles(make_batch(ROWS), (Role.ACTOR, Role.CRITIC))
    assert out.logprobs is not None
    assert out.values is not None


def test_a_role_lives_once(make_model) -> None:
    member = SharedRoles(make_model(), {Role.ACTOR: Costume(wears=(), head="lm_head")}, {})
    with pytest.raises(ValueError, match="role actor lives on one and on two"):
        SeparateRoles({"one": member, "two": member})
