"""The online loop with scripted parts: what each part is given, what the gates stop, what is logged."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import RunError
from posttrain.models.adapters import adapter_parameters
from posttrain.rewards import ScriptedReward
from posttrain.rollout.scripted import ScriptedSampler
from posttrain.train import online
from posttrain.types import Role


def quiet(name, done, total):
    """No progress bar."""


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_sound_set_up_passes_the_gates(make_online_run, notebook, critic, temperature) -> None:
    run, iterations = make_online_run(critic=critic, temperature=temperature)
    notes = notebook()
    online.fit(run, iterations, notes, quiet)
    assert iterations == 3
    assert notes.steps == [1, 2, 3]
    assert run.engine.iteration == 3
    assert run.engine.step == 3 * 2


def test_wrong_logprobs_stop_the_run_before_any_step(make_online_run, notebook) -> None:
    sampler = ScriptedSampler(lambda prompt, sample: [70, 71, 2], logprob=-9.0)
    run, _ = make_online_run({"sampler": sampler})
    with pytest.raises(RunError, match="actor already differs from its reference"):
        online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 0


def test_dropout_left_on_stops_the_run(make_online_run, notebook) -> None:
    run, _ = make_online_run()
    for layer in run.engine.roles.backbone.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(RunError, match=r"allowed 0\.001"):
        online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 0


def test_a_policy_that_is_not_the_one_that_sampled_stops_the_run(make_online_run, notebook) -> None:
    """Reference and sampler agree, but the actor that trains is another: only the ratio can tell."""

    def disturb(batch):
        with torch.no_grad():
            for parameter in adapter_parameters(run.engine.roles.backbone, "actor").values():
                parameter.add_(0.1)

    run, _ = make_online_run({"on_first_rewards": disturb})
    with pytest.raises(RunError, match="On the first minibatch the policy ratio is"):
        online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 0


def test_a_wider_tolerance_lets_it_pass(make_online_run, notebook) -> None:
    sampler = ScriptedSampler(lambda prompt, sample: [70, 71, 2], logprob=-9.0)
    run, _ = make_online_run({"sampler": sampler, "tolerance": 1e9})
    online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 2


def test_gates_are_of_the_first_iteration_only(make_online_run, notebook) -> None:
    run, _ = make_online_run(learning_rate=0.02)
    notes = notebook()
    online.fit(run, 3, notes, quiet)
    assert notes.stats[-1]["kl_k3"] > 0.01


def test_sampling_is_by_the_current_actor(make_online_run, notebook) -> None:
    """One pass over one minibatch: the ratio is 1 in every iteration, though the actor moves far."""
    run, _ = make_online_run(ppo_epochs=1, learning_rate=0.02, critic="adapter")
    notes = notebook()
    online.fit(run, 3, notes, quiet)
    for stats in notes.stats:
        assert stats["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert stats["approx_kl"] == pytest.approx(0.0, abs=1e-5)
    assert notes.stats[0]["kl_k3"] < 1e-6
    assert notes.stats[2]["kl_k3"] > 0.01


def test_what_the_parts_are_given(make_online_run, notebook) -> None:
    seen, recorded = [], []

    def score(ids):
        seen.append(tuple(ids))
        return 1.0

    sampler = ScriptedSampler(lambda prompt, sample: [70 + sample, 80 + prompt.index, 2])
    parts = {"sampler": sampler, "reward": ScriptedReward(score), "tolerance": 1e9}
    run, _ = make_online_run(
        {**parts, "record": lambda step, batch: recorded.append((step, batch))}, num_return_sequences=2
    )
    online.fit(run, 2, notebook(), quiet)
    assert [params.iteration for _, params in sampler.calls] == [0, 1]
    assert [[p.samples for p in prompts] for prompts, _ in sampler.calls] == [[2, 2], [2, 2]]
    assert seen[:4] == [(70, 80, 2), (71, 80, 2), (70, 81, 2), (71, 81, 2)]
    assert [step for step, _ in recorded] == [1, 2]
    batch = recorded[0][1]
    assert batch.rewards.tolist() == [1.0] * 4
    assert all(getattr(batch, name) is not None for name in ("ref_logprobs", "values", "advantages", "returns"))


def test_the_algorithms_state_goes_from_iteration_to_iteration(make_online_run, notebook) -> None:
    """The controller's coefficient: every iteration is credited with what the one before left."""
    run, _ = make_online_run(kl_coef=0.2, ppo_target=6.0, kl_horizon=100)
    notes = notebook()
    online.fit(run, 3, notes, quiet)
    coefficients = [stats["kl_coef"] for stats in notes.stats]
    # far below its target, the KL lets the coefficient fall by 0.2 x 4 sequences / 100 each time
    assert coefficients == pytest.approx([0.2, 0.2 * 0.992, 0.2 * 0.992**2])
    assert run.engine.algorithm_state.kl_coef == pytest.approx(0.2 * 0.992**3)
    assert run.engine.algorithm_state.iterations == 3


def test_the_stream_of_prompts_wraps(make_online_run) -> None:
    """12 prompts, 4 an iteration, 5 wanted: every pass has each prompt once, in an order of its own."""
    run, _ = make_online_run({"num_prompts": 5})
    stream = [p.text for i in range(12) for p in online.take(run, i)]
    texts = sorted(p.text for p in run.prompts)
    passes = [stream[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(one) == texts for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert [p.text for p in online.take(run, 7)] == stream[35:40]


def test_a_buffer_larger_than_the_dataset(make_online_run) -> None:
    run, _ = make_online_run({"num_prompts": 30, "shuffle": False})
    texts = [p.text for p in run.prompts]
    assert [p.text for p in online.take(run, 0)] == [*texts, *texts, *texts[:6]]
    assert [p.text for p in online.take(run, 1)][:6] == texts[6:]


def test_a_buffer_of_several_batches(make_online_run, notebook) -> None:
    recorded = []
    run, iterations = make_online_run(
        {"record": lambda step, batch: recorded.append(len(batch))},
        ppo_buffer_size=3,
        ppo_epochs=2,
    )
    assert iterations == 1
    online.fit(run, 1, notebook(), quiet)
    assert recorded == [12]
    assert run.engine.step == 2 * 3


def test_the_monitor_can_stop_it(make_online_run, notebook) -> None:
    run, _ = make_online_run()
    notes = notebook(stop_at=2)
    online.fit(run, 3, notes, quiet)
    assert notes.steps == [1, 2]


def test_statistics_are_means_over_the_minibatches(make_online_run, notebook, monkeypatch) -> None:
    run, _ = make_online_run(ppo_epochs=2)
    seen = []
    step = run.engine.optimizer_step
    monkeypatch.setattr(run.engine, "optimizer_step", lambda: seen.append(step()) or seen[-1])
    notes = notebook()
    online.fit(run, 1, notes, quiet)
    for name in ("loss", "grad_norm", "ratio", "entropy", "value_loss", "learning_rate"):
        assert notes.stats[0][name] == pytest.approx(sum(s[name] for s in seen) / 2)


def test_tokens_per_second_count_live_tokens(make_online_run, notebook) -> None:
    sampler = ScriptedSampler(lambda prompt, sample: [70] * (1 + 6 * prompt.index) + [2])
    recorded = []
    run, _ = make_online_run(
        {"sampler": sampler, "tolerance": 1e9, "record": lambda step, batch: recorded.append(batch)}, ppo_epochs=3
    )
    notes = notebook()
    online.fit(run, 1, notes, quiet)
    stats, batch = notes.stats[0], recorded[0]
    live = {"generate": batch.loss_mask.sum(), "score": batch.attention_mask.sum()}
    live["train"] = 3 * live["score"]
    for phase, tokens in live.items():
        assert stats[f"{phase}_tokens_per_second"] * stats[f"seconds_{phase}"] == pytest.approx(float(tokens))


def test_held_out_prompts_are_answered_greedily_and_compared(make_online_run, notebook) -> None:
    run, _ = make_online_run(temperature=0.5, num_return_sequences=2, learning_rate=0.02)
    evaluate = online.held_out(run, run.prompts[:5])
    before, again = evaluate(), evaluate()
    timing = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    assert {k: v for k, v in before.items() if k not in timing} == {k: v for k, v in again.items() if k not in timing}
    assert before["eval_kl"] == pytest.approx(0.0, abs=1e-4)  # at temperature 1, whatever is sampled with
    assert set(before) == timing | {
        *("eval_reward", "eval_reward_std", "eval_kl", "eval_response_length", "eval_ended_share")
    }
    assert before["eval_samples_per_second"] == pytest.approx(5 / before["eval_runtime"])
    online.fit(run, 2, notebook(), quiet)
    assert abs(evaluate()["eval_kl"]) > 0.01


def test_sampling_leaves_the_backbone_untouched(make_online_run, notebook) -> None:
    run, _ = make_online_run(critic="adapter")
    roles = run.engine.roles
    trains = set(roles.parameters_of(Role.ACTOR)) | set(roles.parameters_of(Role.CRITIC))
    before = {name: p.detach().clone() for name, p in roles.named_parameters()}
    online.fit(run, 2, notebook(), quiet)
    changed = {name for name, p in roles.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trains
