"""The offline loop: which rows each step takes, and what evaluation says."""

from __future__ import annotations

import math
from itertools import chain

import pytest

from posttrain.data.batches import collate
from posttrain.data.template import EncodedRow
from posttrain.train import offline
from posttrain.train.schedule import steps_plan


class Engine:
    """Stands in for the engine: remembers the rows of each step."""

    def __init__(self, step=0):
        self.step, self.taken = step, []

    def accumulate(self, algorithm, batch):
        self.taken.append([int(ids[0]) for ids in batch.input_ids])

    def optimizer_step(self):
        self.step += 1
        return {"loss": float(self.step), "learning_rate": 0.1}

    def evaluate(self, algorithm, batches):
        self.taken = [len(batch) for batch in batches]
        return {"loss": 2.0, "accuracy": 0.5}


@pytest.fixture
def make_run(tiny_config, tmp_path):
    """(config, rows, plan) over ``count`` rows that begin with their own number."""

    def make(count=10, stage="sft", **keys):
        keys = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, **keys}
        config = tiny_config(stage, tmp_path / "out", **keys)
        encoded = [EncodedRow(input_ids=[i] * (1 + i % 4), loss_mask=[True] * (1 + i % 4)) for i in range(count)]
        rows = offline.Rows(encoded, encoded[:5], [len(row) for row in encoded], lambda part: collate(part, 0))
        train = config.train
        plan = steps_plan(
            *(count, train.per_device_train_batch_size, train.gradient_accumulation_steps, train.num_train_epochs)
        )
        return config, rows, plan

    return make


def fit(make_run, notebook, *, step=0, stop_at=None, **keys):
    config, rows, plan = make_run(**keys)
    engine, notes = Engine(step), notebook(stop_at)
    offline.fit(config, engine, None, rows, plan, notes)
    return engine.taken, notes


def test_every_epoch_takes_every_row_once(make_run, notebook) -> None:
    taken, notes = fit(make_run, notebook)
    assert [len(rows) for rows in taken] == [4, 4, 2, 4, 4, 2]
    first, second = [*chain(*taken[:3])], [*chain(*taken[3:])]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))
    assert notes.steps == [1, 2, 3, 4, 5, 6]
    assert all(stats["tokens_per_second"] > 0 for stats in notes.stats)


def test_a_resumed_run_takes_the_rows_that_are_left(make_run, notebook) -> None:
    whole, _ = fit(make_run, notebook)
    rest, notes = fit(make_run, notebook, step=4)
    assert rest == whole[4:]
    assert notes.steps == [5, 6]


def test_the_order_follows_data_seed(make_run, notebook) -> None:
    assert fit(make_run, notebook, data_seed=1)[0] == fit(make_run, notebook, data_seed=1, seed=9)[0]
    assert fit(make_run, notebook, data_seed=1)[0] != fit(make_run, notebook, data_seed=2)[0]


def test_shuffling_can_be_off(make_run, notebook) -> None:
    taken, _ = fit(make_run, notebook, disable_shuffling=True)
    assert taken[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_rows_can_be_grouped_by_length(make_run, notebook) -> None:
    taken, _ = fit(make_run, notebook, group_by_length=True, num_train_epochs=1, count=16)
    assert sorted(chain(*taken)) == list(range(16))
    assert [len({i % 4 for i in rows}) for rows in taken] == [1, 1, 1, 1]


def test_the_monitor_can_stop_it(make_run, notebook) -> None:
    taken, notes = fit(make_run, notebook, stop_at=2)
    assert len(taken) == len(notes.stats) == 2


@pytest.mark.parametrize("stage", ["sft", "pt"])
def test_evaluation_speaks_the_names_users_know(make_run, stage) -> None:
    config, rows, _ = make_run(stage=stage, per_device_eval_batch_size=2)
    engine = Engine()
    found = offline.evaluation(config, engine, None, rows)()
    assert engine.taken == [2, 2, 1]
    assert found["eval_loss"] == 2.0
    assert found["eval_accuracy"] == 0.5
    assert found["eval_samples_per_second"] == pytest.approx(5 / found["eval_runtime"])
    assert found["eval_steps_per_second"] == pytest.approx(3 / found["eval_runtime"])
    assert found.get("eval_perplexity") == (math.exp(2.0) if stage == "pt" else None)
