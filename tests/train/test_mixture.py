"""Pretraining rows in every update: which ones, how much they weigh, and that a resumed run takes the same."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from posttrain.algorithms import SFT, PretrainingLoss
from posttrain.data.batches import collate
from posttrain.data.template import EncodedRow
from posttrain.train import online
from posttrain.train.mixture import Mixture
from posttrain.train.pace import Pace


def quiet(name, done, total):
    """No progress bar."""


def rows_of(count, start=10):
    """Rows of different lengths that begin with their own number."""
    return [
        EncodedRow([start + i] + [70 + i, 90 + 2 * i] * (1 + i % 3), [True] * (3 + 2 * (i % 3))) for i in range(count)
    ]


class Engine:
    """Stands in for the engine: remembers the rows of each call."""

    def __init__(self, step):
        self.step, self.taken, self.temperatures = step, [], []

    def accumulate(self, algorithm, batch, *, temperature=None):
        self.taken += [int(ids[0]) - 10 for ids in batch.input_ids]
        self.temperatures.append(temperature)


def mixture(count=10, size=4, seed=5, coef=1.0):
    return Mixture(rows=rows_of(count), size=size, seed=seed, pad_id=0, algorithm=PretrainingLoss(coef=coef))


def taken(step, **how):
    engine = Engine(step)
    mixture(**how).accumulate(engine)
    return engine.taken


def test_the_rows_of_a_step_are_a_function_of_its_number() -> None:
    """Ten rows, four a step: every pass takes each of them once, in an order of its own."""
    steps = [taken(step) for step in range(5)]
    assert [len(rows) for rows in steps] == [4] * 5
    stream = [*chain(*steps)]
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert taken(3) == steps[3]
    assert [taken(step, seed=6) for step in range(5)] != steps


def test_a_step_may_take_more_rows_than_there_are() -> None:
    assert sorted(taken(0, count=3, size=6)) == [0, 0, 1, 1, 2, 2]
    assert sorted(taken(7, count=1, size=2)) == [0, 0]


def test_text_is_read_at_temperature_one() -> None:
    engine = Engine(0)
    mixture().accumulate(engine)
    assert engine.temperatures == [1.0]


def gradients(engine):
    return {name: p.grad.clone() for name, p in engine.roles.named_parameters() if p.grad is not None}


@pytest.fixture
def fresh_engine(make_online_run):
    """An engine whose adapter is moved a little, so that all of it has gradients."""

    def make(**keys):
        run, _ = make_online_run(**keys)
        with torch.no_grad():
            for number, parameter in enumerate(p for p in run.engine.roles.parameters() if p.requires_grad):
                generator = torch.Generator().manual_seed(number)
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return run

    return make


def test_the_gradient_is_that_of_plain_training_times_the_coefficient(fresh_engine) -> None:
    """Whatever the sampler's temperature: one mean over the text's own tokens."""
    rows = rows_of(4)
    found = {}
    for coef in (1.0, 0.25):
        engine = fresh_engine(stage="rloo", temperature=0.5).engine
        Mixture(rows=rows, size=4, seed=0, pad_id=0, algorithm=PretrainingLoss(coef=coef)).accumulate(engine)
        found[coef] = gradients(engine)
        logged = engine.pending()
        plain = fresh_engine(stage="rloo").engine
        plain.accumulate(SFT(), collate(rows, 0))
        expected = gradients(plain)
        assert logged["ptx_loss"] == pytest.approx(plain.optimizer_step()["loss"], rel=1e-5)
        assert engine.optimizer_step()["loss"] == pytest.approx(coef * logged["ptx_loss"], rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[coef][name], coef * gradient, atol=1e-6, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in found[1.0].values()) > 1e-3


def test_both_losses_are_means_of_their_own(fresh_engine) -> None:
    """Twice the text, or other experience, changes neither how much the other counts."""
    run = fresh_engine(stage="rloo", num_return_sequences=2)
    engine = run.engine
    batch, _ = online.learn(run, 1, online.experience(run, 1, Pace(), quiet), Pace(), quiet)

    def loss(*, repeated=0, experience=True):
        if experience:
            engine.accumulate(run.algorithm, batch)
        if repeated:
            Mixture(
                rows=rows_of(4) * repeated, size=4 * repeated, seed=0, pad_id=0, algorithm=PretrainingLoss(coef=0.5)
            ).accumulate(engine)
        stats = engine.pending()
        engine.optimizer.zero_grad()
        engine._pending = type(engine._pending)()
        return sum(value for name, value in stats.items() if name.startswith("loss/"))

    alone, text = loss(), loss(repeated=1, experience=False)
    assert loss(repeated=1) == pytest.approx(alone + text, rel=1e-5)
    assert loss(repeated=3) == pytest.approx(alone + text, rel=1e-5)
    assert text > 1.0


def test_every_step_of_an_update_has_its_rows(make_online_run, notebook, monkeypatch) -> None:
    run, _ = make_online_run({"mixture": mixture()}, ppo_epochs=2, ppo_buffer_size=2)
    seen = []
    accumulate = run.engine.accumulate

    def watched(algorithm, batch, **how):
        if isinstance(algorithm, PretrainingLoss):
            seen.append((run.engine.step, [int(ids[0]) - 10 for ids in batch.input_ids]))
        accumulate(algorithm, batch, **how)

    monkeypatch.setattr(run.engine, "accumulate", watched)
    notes = notebook()
    online.fit(run, 1, notes, quiet)
    assert seen == [(step, taken(step)) for step in range(4)]
    assert notes.stats[0]["ptx_loss"] > 1.0
    # the gate of the first minibatch still sees the policy's ratio alone
    assert notes.stats[0]["ratio"] == pytest.approx(1.0, abs=0.05)


def test_text_that_is_mixed_in_is_learned(make_online_run, notebook) -> None:
    run, _ = make_online_run(
        {"mixture": mixture(size=8, coef=1.0)}, stage="rloo", learning_rate=1e-2, num_return_sequences=2
    )
    notes = notebook()
    online.fit(run, 6, notes, quiet)
    losses = [stats["ptx_loss"] for stats in notes.stats]
    assert losses[-1] < losses[0] - 0.3
