"""A trunk in two parts equals the whole, in states, losses and gradients, family by family."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from posttrain.engine.lower_states import lower_parts, piece_states, row_states
from posttrain.engine.numbered import numbered
from posttrain.engine.processes import Processes
from posttrain.errors import UserError
from posttrain.models.adapters import adapter_parameters, add_adapter, last_layers, lora_config
from posttrain.models.forward import prepare_trunk, runs_in_parts
from posttrain.models.heads import ScalarHead
from posttrain.models.load import disable_dropout
from posttrain.models.packing import packed
from posttrain.models.roles import Costume, SharedRoles
from posttrain.models.split import decoder_layers, lower, num_frozen, run_packed, upper
from posttrain.types import Role

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2", "gemma3")


def dress(model, names, *, top=None, layers=None):
    """Adapters that say something, on the top layers or on the given ones."""
    config = lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",), top_layers=top)
    if layers is not None:
        config.layers_to_transform = list(layers)
    generator = torch.Generator().manual_seed(4)
    for name in names:
        add_adapter(model, name, config)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name).values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def made_roles(model, *, checkpointing=False, parents=()):
    """Actor and critic with adapters in the last layer, a reward that has its adapter there too, and the reference."""
    dress(model, parents)
    dress(model, ("actor", "reward", "critic"), top=1)
    model.requires_grad_(False)
    disable_dropout(model)
    prepare_trunk(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    heads = {name: ScalarHead(32, name, generator=torch.Generator().manual_seed(3)) for name in ("score", "value")}
    table = {
        Role.ACTOR: Costume(wears=(*parents, "actor"), head="lm_head", trains="actor"),
        Role.REFERENCE: Costume(wears=tuple(parents), head="lm_head"),
        Role.REWARD: Costume(wears=(*parents, "reward"), head="score"),
        Role.CRITIC: Costume(wears=(*parents, "reward", "critic"), head="value", trains="critic"),
    }
    with torch.no_grad():
        heads["value"].weight.normal_(generator=torch.Generator().manual_seed(5))
    return SharedRoles(model, table, heads).train()


def keeping(roles, batch, trained=(Role.ACTOR, Role.CRITIC)):
    """The batch with its lower states, computed as one micro-batch."""
    parts = lower_parts(roles, trained)
    own = [(numbered(batch), piece_states(roles, parts, batch))]
    return batch.with_columns(lower_states=row_states(parts, batch, own, Processes()))


def answers(roles, batch):
    """Every role's columns, and the gradients of a scalar in which each entry of them counts differently."""
    roles.zero_grad()
    columns = {}
    generator = torch.Generator().manual_seed(7)
    for role in roles.costumes:
        with roles.wearing(role):
            out = roles(batch, (role,), temperature=0.8)
            found = [x for x in (out.logprobs, out.entropy, out.values, out.scores) if x is not None]
            columns[role] = [x.detach() for x in found]
            total = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in found)
            if total.requires_grad:
                total.backward()
    return columns, {n: p.grad.clone() for n, p in roles.named_parameters() if p.grad is not None}


def assert_same(one, other, tolerance=1e-5):
    for role, columns in one[0].items():
        for mine, expected in zip(columns, other[0][role], strict=True):
            torch.testing.assert_close(mine, expected, atol=tolerance, rtol=tolerance)
    assert one[1].keys() == other[1].keys() != set()
    for name, gradient in one[1].items():
        gap = (gradient - other[1][name]).abs().max()
        assert gap <= tolerance * max(1.0, gradient.abs().max()), f"{name}: {gap}"


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 10**6))
def test_kept_equals_computed(make_model, make_batch, ragged_rows, family, seed) -> None:
    """All roles, ragged rows, shared prefixes; rows in another order, and only some of them, find their states."""
    roles = made_roles(make_model(family))
    batch = make_batch(ragged_rows(seed))
    kept = keeping(roles, batch)
    assert kept.lower_states
    order = list(range(len(batch)))
    random.Random(seed).shuffle(order)
    chosen = torch.tensor(order[: max(1, len(order) - 1)])
    whole, parts = answers(roles, batch.rows(chosen)), answers(roles, kept.rows(chosen))
    assert_same(whole, parts)


def test_it_is_the_lower_layers_that_are_left_out(make_model, make_batch, ragged_rows) -> None:
    """With other states kept the answers are others: the layers below did not run again."""
    roles = made_roles(make_model())
    kept = keeping(roles, make_batch(ragged_rows(3)))
    expected = answers(roles, kept)
    calls = []
    first, second = decoder_layers(roles.backbone)[1]
    first.register_forward_hook(lambda *_: calls.append("first"))
    second.register_forward_hook(lambda *_: calls.append("second"))
    answers(roles, kept)
    assert calls == ["second"] * 4
    for table in kept.lower_states[0].kept.tables.values():
        table.add_(1.0)
    with pytest.raises(AssertionError):
        assert_same(answers(roles, kept), expected)


def test_parents_beneath_are_part_of_the_function(make_model, make_batch, ragged_rows) -> None:
    roles = made_roles(make_model(), parents=("sft",))
    assert roles.lower_part(Role.ACTOR) == roles.lower_part(Role.REFERENCE) == roles.lower_part(Role.CRITIC)
    assert roles.lower_part(Role.ACTOR).worn == ("sft",)
    batch = make_batch(ragged_rows(5))
    assert_same(answers(roles, batch), answers(roles, keeping(roles, batch)))


def test_who_wears_something_else_below_computes_it(make_model, make_batch, ragged_rows) -> None:
    """A reward on all layers: it and its critic are another function below; only the critic's states are kept."""
    model = make_model()
    dress(model, ("reward",))
    dress(model, ("actor", "critic"), top=1)
    model.requires_grad_(False)
    prepare_trunk(model)
    heads = {"score": ScalarHead(32, "score"), "value": ScalarHead(32, "value")}
    table = {
        Role.ACTOR: Costume(wears=("actor",), head="lm_head", trains="actor"),
        Role.REFERENCE: Costume(wears=(), head="lm_head"),
        Role.REWARD: Costume(wears=("reward",), head="score"),
        Role.CRITIC: Costume(wears=("reward", "critic"), head="value", trains="critic"),
    }
    roles = SharedRoles(model, table, heads).train()
    batch = make_batch(ragged_rows(8))
    whole = answers(roles, batch)
    kept = keeping(roles, batch)
    assert [part.worn for part in kept.lower_states[0].kept.tables] == [(), ("reward",)]
    assert_same(whole, answers(roles, kept))
    only_actor = keeping(roles, batch, trained=(Role.ACTOR,))
    assert [part.worn for part in only_actor.lower_states[0].kept.tables] == [()]
    assert_same(whole, answers(roles, only_actor))


def test_recomputed_activations_find_their_layers(make_model, make_batch, ragged_rows) -> None:
    """With activation checkpointing the upper layers run a second time after the stand-ins have gone."""
    batch = make_batch(ragged_rows(4))
    plain, checkpointed = made_roles(make_model("gpt2")), made_roles(make_model("gpt2"), checkpointing=True)
    assert_same(answers(plain, batch), answers(checkpointed, keeping(checkpointed, batch)))


def test_a_model_is_whole_again_after_an_error(make_model, make_batch, ragged_rows) -> None:
    model = make_model()
    prepare_trunk(model)
    plan = packed(make_batch(ragged_rows(1)))
    before = list(decoder_layers(model)[1])
    with pytest.raises(RuntimeError):
        upper(model, plan, 1, torch.zeros(plan.num_tokens, 31))
    assert list(decoder_layers(model)[1]) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(make_model, make_batch, ragged_rows, family) -> None:
    """Behind the first layer, against ``output_hidden_states`` of the padded model."""
    batch = make_batch(ragged_rows(6))
    model, theirs = make_model(family), make_model(family)
    theirs.set_attn_implementation("eager")
    prepare_trunk(model)
    plan = packed(batch)
    with torch.no_grad():
        states = theirs(
            input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), output_hidden_states=True
        ).hidden_states[1]
        found = lower(model, plan, 1)
        torch.testing.assert_close(
            found[plan.index[batch.attention_mask]], states[batch.attention_mask], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(upper(model, plan, 1, found), run_packed(model, plan), atol=1e-5, rtol=1e-5)


def test_a_model_that_mixes_its_layers_runs_whole(make_model) -> None:
    """Where a later layer is given more than the state before it, the probe says no and why."""
    model = make_model()
    prepare_trunk(model)
    assert runs_in_parts(model, 1)
    layers = decoder_layers(model)[1]
    runs = []

    class Mixing(nn.Module):
        def forward(self, hidden_states, *_, **__):
            return hidden_states + len(runs) * torch.arange(32)

    layers[0].register_forward_hook(lambda *_: runs.append(1))
    layers[1] = Mixing()
    with pytest.warns(UserWarning, match="LlamaForCausalLM cannot run in parts .*1 lower layers are computed again"):
        assert not runs_in_parts(model, 1)


def test_a_padded_model_runs_whole_without_a_word(make_model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not runs_in_parts(make_model(), 1)


def test_how_many_layers_are_frozen(make_model) -> None:
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    assert num_frozen(model, [n for n in names if ".layers.1." in n]) == 1
    assert num_frozen(model, [n for n in names if ".layers." in n]) == 0
    assert num_frozen(model, [n for n in names if ".layers.1." in n] + ["lm_head.weight"]) == 1
    assert num_frozen(model, [n for n in names if ".layers.1." in n or "embed" in n]) == 0
    assert num_frozen(model, []) == 0
    tied = make_model("gpt2")  # its output head is its embedding
    names = [name for name, _ in tied.named_parameters()]
    assert num_frozen(tied, [n for n in names if ".h.1." in n]) == 1
    assert num_frozen(tied, [n for n in names if ".h.1." in n or "wte" in n]) == 0


def test_adapters_on_all_layers_keep_nothing(make_model, make_batch, ragged_rows) -> None:
    model = make_model()
    dress(model, ("actor",))
    model.requires_grad_(False)
    prepare_trunk(model)
    roles = SharedRoles(model, {Role.ACTOR: Costume(wears=("actor",), head="lm_head", trains="actor")}, {})
    assert roles.lower_part(Role.ACTOR) is None
    assert lower_parts(roles, (Role.ACTOR,)) == {}
    with pytest.raises(ValueError, match="no lower part"):
        roles.lower_states(Role.ACTOR, packed(make_batch(ragged_rows(0))))


def test_rows_of_two_batches_do_not_mix(make_model, make_batch) -> None:
    roles = made_roles(make_model())
    batch = make_batch([[9, 10, 11], [12, 13]])
    one, other = keeping(roles, batch), keeping(roles, batch)
    mixed = batch.with_columns(lower_states=(one.lower_states[0], other.lower_states[1]))
    with pytest.raises(ValueError, match="different batches"):
        roles(mixed, (Role.ACTOR,))


def test_last_layers(make_model) -> None:
    model = make_model()
    for wanted, expected in ((2, [0, 1]), (1, [1]), (0.5, [1]), (0.01, [1]), (0.99, [0, 1])):
        assert last_layers(model, wanted) == expected
    with pytest.raises(UserError, match="trainable_layers is 3, but LlamaForCausalLM has 2 layers: use 1 to 2"):
        last_layers(model, 3)


def test_a_layer_named_in_full_must_be_among_them(make_model) -> None:
    model, name = make_model(), "model.layers.0.mlp.up_proj"
    with pytest.raises(UserError, match=f"lora_target names {name}, which is not in the last 1 layers"):
        lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("q_proj", name), top_layers=1)
    dress(model, ("actor",), top=1)
    assert {key.split(".layers.")[1][0] for key in adapter_parameters(model, "actor")} == {"1"}
