"""The engine: one objective whatever the cut, AdamW by the book, rows back in order, errors before damage."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch.nn import functional as F

from posttrain.algorithms import DPO, GRPO, KTO, PPO, RLOO, SFT, BradleyTerry, OnlineDPO, SimPO
from posttrain.engine import Engine, OptimizerSettings, state
from posttrain.errors import RunError, UserError
from posttrain.models.adapters import adapter_parameters, add_adapter, lora_config
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.roles import Costume, SharedRoles
from posttrain.types import LossTerm, Role, RolloutBatch, UnpairedBatch

SETTINGS = OptimizerSettings(learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, max_grad_norm=0.5)
ROWS = [
    [9] * 9 + [10, 11],
    [9] * 9 + [12],
    [20, 21, 22, 23],
    [9] * 9 + [13, 14, 15],
    [30, 31],
    [40] * 7,
    [41] * 3,
    [42, 43, 44],
]


def schedule(step):
    return 1.0 / (step + 1)


def make_engine(make_model, algorithm, *, critic="value_head", checkpointing=False, dropout=0.0, **options):
    """An engine over a random model; its adapters are not at their start, so that gradients reach all of them."""
    model = make_model()
    generator = torch.Generator().manual_seed(4)
    config = lora_config(model, rank=4, alpha=8, dropout=dropout, targets=("all",))
    for name in ("actor", "reward", "critic"):
        add_adapter(model, name, config)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name).values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.requires_grad_(False)
    prepare_trunk(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    critic_wears = ("actor",) if critic == "value_head" else ("reward", "critic")
    table = {
        Role.ACTOR: Costume(wears=("actor",), head="lm_head", trains="actor"),
        Role.REFERENCE: Costume(wears=(), head="lm_head"),
        Role.REWARD: Costume(wears=("reward",), head="score", trains=None if isinstance(algorithm, PPO) else "reward"),
        Role.CRITIC: Costume(wears=critic_wears, head="value", trains=critic_wears[-1]),
    }
    heads = {"score": ScalarHead(32, "score", generator=generator), "value": ScalarHead(32, "value")}
    with torch.no_grad():
        heads["value"].weight.normal_(generator=generator)
    roles = SharedRoles(model, table, heads)
    return Engine(roles, algorithm, options.pop("settings", SETTINGS), schedule, **options)


def rollout(make_batch):
    """Experience with every column filled, made up."""
    batch = make_batch(ROWS)
    generator = torch.Generator().manual_seed(1)

    def column():
        return torch.randn(batch.input_ids.shape, generator=generator) * batch.loss_mask

    columns = {name: column() for name in ("ref_logprobs", "values", "advantages", "returns")}
    return RolloutBatch(
        **{f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)},
        logprobs=column() - 3.0 * batch.loss_mask,
        ended=torch.ones(len(batch), dtype=torch.bool),
        rewards=torch.randn(len(batch), generator=generator),
        **columns,
    )


def trained(engine):
    return {n: p.detach().clone() for n, p in engine.roles.named_parameters() if p.requires_grad}


CASES = {"sft": (SFT(), {}), "rm": (BradleyTerry(center_rewards_coef=0.1), {"pairs": True})}
CASES |= {f"ppo {critic}": (PPO(entropy_coef=0.01), {"critic": critic}) for critic in ("value_head", "adapter")}
CASES |= {"dpo": (DPO(sft_coef=0.2), {"pairs": True}), "simpo": (SimPO(), {"pairs": True})}
CASES |= {"kto": (KTO(undesirable_weight=1.5, sft_coef=0.1), {"judged": True}), "rloo": (RLOO(), {})}
CASES |= {"grpo": (GRPO(kl_coef=0.1, importance="sequence", entropy_coef=0.01), {}), "online dpo": (OnlineDPO(), {})}


def filled(make_batch, algorithm, *, pairs=False, judged=False):
    """A batch of the algorithm's kind with every column filled."""
    ref_logps = -10 + torch.randn(len(ROWS), generator=torch.Generator().manual_seed(2))
    if judged:
        good = torch.tensor([True, False, False, True, True, True, False, True])
        columns = {"desirable": good, "ref_logps": ref_logps, "kl": torch.full((len(ROWS),), 0.5)}
        return UnpairedBatch(**vars(make_batch(ROWS)), **columns)
    if pairs:
        batch = make_batch(ROWS, pairs=True, margins=torch.linspace(-1, 1, len(ROWS) // 2))
        return batch.with_columns(ref_logps=ref_logps)
    if not hasattr(algorithm, "credit"):
        return make_batch(ROWS)
    batch = rollout(make_batch)
    if isinstance(algorithm, OnlineDPO):
        signs = torch.tensor([1.0, -1, -1, 1, 1, -1, -1, 1])
        batch = batch.with_columns(advantages=signs[:, None] * batch.loss_mask)
    return batch


def prepared(name, make_model, make_batch, **options):
    algorithm, how = CASES[name]
    critic = {key: value for key, value in how.items() if key == "critic"}
    engine = make_engine(make_model, algorithm, **critic, **options)
    return engine, algorithm, filled(make_batch, algorithm, **{k: v for k, v in how.items() if k not in critic})


@pytest.mark.parametrize("name", CASES)
def test_the_cut_into_micro_batches_changes_nothing(make_model, make_batch, name) -> None:
    """1 x 8 = 8 x 1: losses, metrics and weights after three steps."""
    results = []
    for budget in (1, 13, 10_000):
        engine, algorithm, batch = prepared(name, make_model, make_batch, max_tokens=budget)
        stats = []
        for _ in range(3):
            engine.accumulate(algorithm, batch)
            stats.append(engine.optimizer_step())
        results.append((stats, trained(engine)))
    expected_stats, expected = results[0]
    for stats, weights in results[1:]:
        for mine, other in zip(stats, expected_stats, strict=True):
            assert mine == pytest.approx(other, rel=1e-4, abs=1e-6)
        for key, weight in weights.items():
            # Adam divides by gradients that are all but 0 in some places
            torch.testing.assert_close(weight, expected[key], atol=1e-4 * float(weight.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_rows_changes_nothing(make_model, make_batch, name) -> None:
    engine, algorithm, batch = prepared(name, make_model, make_batch)
    order = torch.tensor([4, 5, 0, 1, 6, 7, 2, 3])
    engine.accumulate(algorithm, batch)
    first = engine.optimizer_step()
    again, _, _ = prepared(name, make_model, make_batch)
    again.accumulate(algorithm, batch.rows(order))
    assert again.optimizer_step() == pytest.approx(first, rel=1e-5, abs=1e-6)


def test_the_loss_is_one_mean_over_all_trained_tokens(make_model, make_batch) -> None:
    """Not a mean of means: rows here differ in length by five times, and three micro-batches in size."""
    engine, algorithm, batch = prepared("sft", make_model, make_batch, max_tokens=13)
    engine.accumulate(algorithm, batch)
    stats = engine.optimizer_step()
    fresh, _, _ = prepared("sft", make_model, make_batch)
    with fresh.roles.wearing(Role.ACTOR):
        model = fresh.roles.backbone
        model.set_attn_implementation("eager")
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        targets = torch.where(batch.loss_mask, batch.input_ids, -100)[:, 1:]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
    assert stats["loss"] == pytest.approx(float(loss), rel=1e-5)
    parameters = [p for p in fresh.roles.parameters() if p.requires_grad and p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    assert stats["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_the_optimizer_is_adamw(make_model, make_batch, max_grad_norm) -> None:
    """Against torch.optim.AdamW run by hand on the same gradients, with the schedule's rate at every step."""
    settings = dataclasses.replace(SETTINGS, max_grad_norm=max_grad_norm)
    engine, algorithm, batch = prepared("ppo value_head", make_model, make_batch, settings=settings)
    owned = dict(engine.roles.parameters_of(Role.ACTOR) | engine.roles.parameters_of(Role.CRITIC))
    copies = {name: p.detach().clone().requires_grad_() for name, p in owned.items()}
    groups = [
        {"params": [p for p in copies.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in copies.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    for step in range(4):
        engine.accumulate(algorithm, batch)
        for name, parameter in owned.items():
            copies[name].grad = parameter.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(copies.values(), max_grad_norm or float("inf"))
        for group in reference.param_groups:
            group["lr"] = 0.01 * schedule(step)
        reference.step()
        stats = engine.optimizer_step()
        assert stats["learning_rate"] == pytest.approx(0.01 * schedule(step))
        assert stats["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        for name, parameter in owned.items():
            torch.testing.assert_close(parameter, copies[name], atol=1e-7, rtol=1e-5)
    assert engine.step == 4


def test_a_role_has_its_own_learning_rate(make_model, make_batch) -> None:
    settings = dataclasses.replace(SETTINGS, role_learning_rates={Role.CRITIC: 0.0})
    engine, algorithm, batch = prepared("ppo adapter", make_model, make_batch, settings=settings)
    before = trained(engine)
    engine.accumulate(algorithm, batch)
    engine.optimizer_step()
    critic = engine.roles.parameters_of(Role.CRITIC)
    for name, weight in trained(engine).items():
        assert torch.equal(weight, before[name]) == (name in critic), name


@pytest.mark.parametrize("name", CASES)
def test_activation_checkpointing_changes_no_gradient(make_model, make_batch, name) -> None:
    found = []
    for checkpointing in (False, True):
        engine, algorithm, batch = prepared(name, make_model, make_batch, checkpointing=checkpointing)
        engine.accumulate(algorithm, batch)
        found.append({n: p.grad.clone() for n, p in engine.roles.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == trained_names(engine, algorithm)
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-6, rtol=1e-5)
        assert gradient.abs().sum() > 0, key


def trained_names(engine, algorithm):
    return {name for role in algorithm.trains for name in engine.roles.parameters_of(role)}


def test_checkpointing_really_recomputes(make_model, make_batch) -> None:
    """Else the test above compares a thing with itself."""
    engine, algorithm, batch = prepared("ppo adapter", make_model, make_batch, checkpointing=True, max_tokens=10_000)
    seen = []
    engine.roles.backbone.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    engine.accumulate(algorithm, batch)
    assert len(seen) == 4  # actor and critic, each forward and again in backward


@dataclasses.dataclass(frozen=True)
class Broken:
    """An SFT whose loss is not a number in one token."""

    trains = (Role.ACTOR,)
    consults = ()
    rows_together = 1

    def loss(self, role, out, batch):
        loss = -out.logprobs.clone()
        loss[0, 1] = loss[0, 1] * float("nan")
        return LossTerm(loss=loss, metrics={}, unit="token")


@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_a_nan_stops_the_run_before_it_reaches_the_weights(make_model, make_batch, max_grad_norm) -> None:
    settings = dataclasses.replace(SETTINGS, max_grad_norm=max_grad_norm)
    engine, algorithm, batch = prepared("sft", make_model, make_batch, settings=settings)
    engine.accumulate(algorithm, batch)
    engine.optimizer_step()
    before = trained(engine)
    engine.accumulate(Broken(), batch)
    with pytest.raises(RunError, match=r"loss became nan at step 2; the weights were not changed"):
        engine.optimizer_step()
    assert engine.step == 1
    assert all(torch.equal(weight, before[name]) for name, weight in trained(engine).items())


def test_consult_and_scores_return_rows_in_their_order(make_model, make_batch) -> None:
    batch = rollout(make_batch)
    engine = make_engine(make_model, PPO(), critic="adapter", max_tokens=12)
    whole = make_engine(make_model, PPO(), critic="adapter", max_tokens=10_000)
    bare = batch.with_columns(ref_logprobs=None, values=None)
    found = engine.consult((Role.REFERENCE, Role.CRITIC), bare)
    scores = engine.scores(batch)
    for i in range(len(batch)):
        row = batch.rows(torch.tensor([i]))
        width = row.input_ids.shape[1]
        with torch.no_grad():
            torch.testing.assert_close(
                found.ref_logprobs[i : i + 1, :width],
                whole.roles(row, (Role.REFERENCE,)).logprobs,
                atol=1e-5,
                rtol=1e-5,
            )
            torch.testing.assert_close(
                found.values[i : i + 1, :width], whole.roles(row, (Role.CRITIC,)).values, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(scores[i], whole.roles(row, (Role.REWARD,)).scores[0], atol=1e-5, rtol=1e-5)
        assert not found.values[i, width:].any()
    assert found.values.shape == batch.input_ids.shape
    assert not any(column.requires_grad for column in (found.values, found.ref_logprobs, scores))


def test_consult_uses_the_sampling_temperature_unless_told(make_model, make_batch) -> None:
    batch = rollout(make_batch)
    hot = make_engine(make_model, PPO(), temperature=2.0)
    cold = make_engine(make_model, PPO())
    at_two = hot.consult((Role.REFERENCE,), batch).ref_logprobs
    at_one = hot.consult((Role.REFERENCE,), batch, temperature=1.0).ref_logprobs
    assert torch.equal(at_one, cold.consult((Role.REFERENCE,), batch).ref_logprobs)
    assert (at_two - at_one).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sft", "rm"])
def test_evaluation_is_a_mean_over_everything_without_dropout(make_model, make_batch, name) -> None:
    engine, algorithm, batch = prepared(name, make_model, make_batch, dropout=0.5, max_tokens=13)
    dry, _, _ = prepared(name, make_model, make_batch, dropout=0.0)
    dry.accumulate(algorithm, batch)
    expected = dry.optimizer_step()
    before = trained(engine)
    halves = [batch.rows(torch.arange(0, 2)), batch.rows(torch.arange(2, 8))]
    found = engine.evaluate(algorithm, halves)
    assert found == pytest.approx({k: v for k, v in expected.items() if k in found}, rel=1e-4)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert engine.roles.training
    assert all(torch.equal(weight, before[key]) for key, weight in trained(engine).items())


def test_dropout_is_a_function_of_seed_and_step(make_model, make_batch) -> None:
    losses = []
    for seed, disturb in ((0, False), (0, True), (1, False)):
        engine, algorithm, batch = prepared("sft", make_model, make_batch, dropout=0.3, seed=seed, max_tokens=20)
        for _ in range(2):
            if disturb:
                torch.rand(7)
            engine.accumulate(algorithm, batch)
            loss = engine.optimizer_step()["loss"]
        losses.append(loss)
    assert losses[0] == losses[1] != losses[2]


def test_dropout_differs_from_step_to_step(make_model, make_batch) -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=0.0)
    engine, algorithm, batch = prepared("sft", make_model, make_batch, dropout=0.3, settings=still)
    losses = []
    for _ in range(2):
        engine.accumulate(algorithm, batch)
        losses.append(engine.optimizer_step()["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", CASES)
def test_saved_and_resumed_is_bitwise_the_same(make_model, make_batch, tmp_path, name) -> None:
    options = {"dropout": 0.1} if name in ("sft", "rm") else {}
    engine, algorithm, batch = prepared(name, make_model, make_batch, **options)
    for step in range(5):
        if step == 2:
            engine.iteration = 7
            engine.algorithm_state = dataclasses.replace(engine.algorithm_state, kl_coef=0.123, reward_mean=1 / 3)
            engine.save(tmp_path)
        engine.accumulate(algorithm, batch)
        engine.optimizer_step()
    again, _, _ = prepared(name, make_model, make_batch, **options)
    again.resume(tmp_path)
    assert (again.step, again.iteration) == (2, 7)
    assert (again.algorithm_state.kl_coef, again.algorithm_state.reward_mean) == (0.123, 1 / 3)
    for _ in range(3):
        again.accumulate(algorithm, batch)
        again.optimizer_step()
    assert all(torch.equal(weight, trained(engine)[key]) for key, weight in trained(again).items())
    assert again.trained_tokens == engine.trained_tokens
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.bin"))


def test_a_checkpoint_of_another_run_is_refused(make_model, make_batch, tmp_path) -> None:
    engine, _, _ = prepared("ppo adapter", make_model, make_batch)
    engine.save(tmp_path)
    other, _, _ = prepared("sft", make_model, make_batch)
    with pytest.raises(UserError, match=r"trains other weights .*the first is"):
        other.resume(tmp_path)


def test_a_checkpoint_of_other_shapes_is_refused(make_model, make_batch, tmp_path) -> None:
    engine, _, _ = prepared("sft", make_model, make_batch)
    engine.save(tmp_path)
    name, weight = next(iter(engine._named().items()))
    weight.data = weight.data[:1]
    with pytest.raises(UserError, match=rf"{re.escape(name)} is .* there and .* here, as after a change of lora_rank"):
        engine.load_weights(tmp_path)


@pytest.mark.parametrize("file", [state.WEIGHTS, state.OPTIMIZER, state.COUNTERS])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_damaged_checkpoint_is_one_clear_message(make_model, make_batch, tmp_path, file, content) -> None:
    engine, algorithm, batch = prepared("sft", make_model, make_batch)
    engine.accumulate(algorithm, batch)
    engine.optimizer_step()
    engine.save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file} cannot be read as part of a checkpoint"):
        engine.resume(tmp_path)


def test_load_weights_takes_weights_only(make_model, make_batch, tmp_path) -> None:
    engine, algorithm, batch = prepared("sft", make_model, make_batch)
    engine.save(tmp_path)
    start = trained(engine)
    engine.accumulate(algorithm, batch)
    engine.optimizer_step()
    engine.load_weights(tmp_path)
    assert engine.step == 1
    assert all(torch.equal(weight, start[key]) for key, weight in trained(engine).items())
