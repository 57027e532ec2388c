"""What two equal runs may differ in, and what not."""

from __future__ import annotations

import pytest

from posttrain.train.clocks import is_clock, timeless


@pytest.mark.parametrize("name", ["elapsed_time", "eval_runtime", "tokens_per_second", "seconds_train", "created"])
def test_readings_of_a_clock(name) -> None:
    assert is_clock(name)


@pytest.mark.parametrize("name", ["loss", "current_steps", "train_tokens", "epoch", "second", "time"])
def test_what_is_measured_of_the_model_is_none(name) -> None:
    assert not is_clock(name)


def test_they_go_at_any_depth_and_nothing_else_does() -> None:
    state = {"meter": {"loss": [1.0, 2.0], "tokens_per_second": [9.0, 1.0]}, "rows": [{"seconds": 3.0, "step": 1}]}
    assert timeless(state) == {"meter": {"loss": [1.0, 2.0]}, "rows": [{"step": 1}]}
