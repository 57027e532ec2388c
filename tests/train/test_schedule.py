import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.models.assemble import online_assembly
from posttrain.train.parts import make_engine, make_plan
from posttrain.train.schedule import SCHEDULES, learning_rate_factor, steps_plan

TOTAL = 23


OPTIONS = [
    *[(kind, {}) for kind in SCHEDULES if kind not in ("cosine_with_min_lr", "warmup_stable_decay")],
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.25}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 4}),
    ("warmup_stable_decay", {"num_decay_steps": 9, "num_stable_steps": 6, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "warmup_type": "cosine", "decay_type": "linear"}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_factors_are_those_of_transformers(kind, options, warmup):
    rate = 2e-4
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = transformers.get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL, scheduler_specific_kwargs=options
    )
    for step in range(TOTAL):
        ours = learning_rate_factor(step, total=TOTAL, warmup=warmup, kind=kind, learning_rate=rate, options=options)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"] / rate, abs=1e-12), f"step {step}"
        optimizer.step()
        scheduler.step()


def test_a_linear_schedule_by_hand():
    # 2 steps of warm-up, then 8 steps down to 0: 0, 1/2, 1, 7/8, ...
    factors = [learning_rate_factor(step, total=10, warmup=2, kind="linear") for step in range(11)]
    assert factors[:4] == [0.0, 0.5, 1.0, 0.875]
    assert factors[10] == 0.0


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'exponential'.*cosine"):
        learning_rate_factor(0, total=10, warmup=0, kind="exponential")


def test_the_last_tenth_decays_unless_said_otherwise():
    factors = [learning_rate_factor(step, total=30, warmup=0, kind="warmup_stable_decay") for step in range(31)]
    assert factors[:28] == [1.0] * 28
    assert factors[28] == pytest.approx(0.75)
    assert factors[30] == 0.0


def test_steps_of_an_online_run_count_iterations(tiny_config, tmp_path, trained):
    """Decay over 2 iterations of 2 optimizer steps each (2 epochs): the rate falls over the last 4 of 8."""
    options = {"num_decay_steps": 2, "decay_type": "linear"}
    config = tiny_config(
        "ppo",
        tmp_path / "out",
        reward_model=str(trained / "rm"),
        max_steps=4,
        learning_rate=1e-3,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs=options,
    )
    engine = make_engine(config, online_assembly(config).roles, make_plan(config, 12))
    assert [round(engine._schedule(step), 6) for step in range(8)] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_the_plan_by_hand():
    # 10 rows in micro-batches of 3: 4 of them, two at a time: 2 steps an epoch, 2.5 epochs: 5 steps, a tenth of it up.
    plan = steps_plan(10, 3, 2, 2.5, warmup_ratio=0.1)
    assert (plan.total, plan.per_epoch, plan.warmup) == (5, 2, 1)
    assert plan.epoch(5) == 2.5


def test_max_steps_and_warmup_steps_win():
    plan = steps_plan(10, 3, 2, 2.5, 7, warmup_steps=3, warmup_ratio=0.5)
    assert (plan.total, plan.per_epoch, plan.warmup) == (7, 2, 3)


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 8), st.integers(1, 4))
def test_steps_cover_every_row_and_no_step_is_empty(rows, batch_size, accumulation, epochs):
    plan = steps_plan(rows, batch_size, accumulation, epochs)
    assert plan.per_epoch * batch_size * accumulation >= rows
    assert (plan.per_epoch - 1) * batch_size * accumulation < rows
    assert plan.total == epochs * plan.per_epoch
    assert plan.epoch(plan.total) == epochs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, 1, 1.0), "empty"),
        ((5, 0, 1, 1.0), "per_device_train_batch_size"),
        ((5, 1, 0, 1.0), "gradient_accumulation_steps"),
        ((5, 1, 1, 0.0), "num_train_epochs"),
        ((5, 1, 1, math.nan), "num_train_epochs"),
    ],
)
def test_a_run_of_no_length_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        steps_plan(*arguments)
