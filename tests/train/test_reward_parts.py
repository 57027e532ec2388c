"""The parts of a reward that is a sum reach the log and every row of completions.jsonl."""

from __future__ import annotations

import json

import pytest

from posttrain.train.run import train


@pytest.mark.parametrize("more", [{}, {"dynamic_sampling": True}], ids=["plain", "dynamic sampling"])
def test_each_part_is_logged(tiny_config, tmp_path, more) -> None:
    config = tiny_config(
        "grpo",
        tmp_path / "out",
        reward_funcs="length:2-6,regex:a",
        reward_weights="1,0.5",
        num_return_sequences=4,
        max_steps=2,
        save_strategy="no",
        **more,
    )
    train(config)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in (out / "completions.jsonl").read_text("utf-8").splitlines()]
    assert {"reward/length", "reward/regex"} <= rows[0].keys()
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/length"] + 0.5 * row["reward/regex"], abs=1e-6)
    for line in (line for line in lines if "reward_mean" in line):
        mine = [row["reward/regex"] for row in rows if row["step"] == line["current_steps"]]
        assert line["reward/regex_mean"] == pytest.approx(sum(mine) / len(mine), abs=1e-6)
