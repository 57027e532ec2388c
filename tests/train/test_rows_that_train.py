"""Experience of which some rows train: how it is cut into optimizer steps, and what happens when nothing is left."""

from __future__ import annotations

import json
import math

import pytest

from posttrain.rewards import ScriptedReward
from posttrain.train import online
from posttrain.train.run import train

WANTED = range(100, 140)


def quiet(name, done, total):
    """No progress bar."""


def share(ids):
    return sum(i in WANTED for i in ids) / len(ids)


@pytest.fixture
def trained_on(make_online_run, notebook, monkeypatch):
    """(experience, minibatches, log) of one iteration of 16 completions in steps of 4."""

    def make(stage, reward=share, **keys):
        recorded, pieces = [], []
        keys = {"ppo_buffer_size": 4, "num_return_sequences": 4, "ppo_epochs": 1, **keys}
        parts = {"reward": ScriptedReward(reward), "record": lambda step, batch: recorded.append(batch)}
        run, _ = make_online_run(parts, stage=stage, **keys)
        accumulate = run.engine.accumulate

        def watched(algorithm, piece, **how):
            pieces.append(piece)
            accumulate(algorithm, piece, **how)

        monkeypatch.setattr(run.engine, "accumulate", watched)
        notes = notebook()
        online.fit(run, 1, notes, quiet)
        assert run.engine.step == len(pieces)
        return recorded[0], pieces, notes.stats[0]

    return make


def key(batch, row):
    """What a row is, wherever it stands."""
    return batch.prompts[row], batch.completions[row], float(batch.rewards[row])


def keys_of(batch):
    return [key(batch, row) for row in range(len(batch))]


def test_where_every_row_trains_steps_are_of_the_size_that_was_asked_for(trained_on) -> None:
    batch, pieces, stats = trained_on("grpo")
    assert batch.trains is None
    assert [len(piece) for piece in pieces] == [4] * 4
    assert all(len(set(piece.prompts)) == 1 for piece in pieces)
    assert "trained_share" not in stats


@pytest.mark.parametrize("epochs", [1, 2])
def test_pairs_are_spread_over_as_many_steps_and_stay_together(trained_on, epochs) -> None:
    """Two of the four completions of a prompt: the number of steps stays, each has half the rows."""
    batch, pieces, stats = trained_on("online_dpo", ppo_epochs=epochs)
    assert batch.trains.sum() == 8
    assert [len(piece) for piece in pieces] == [2] * 4 * epochs
    for piece in pieces:
        assert len(set(piece.prompts)) == 1
        assert piece.trains.all()
        signs = [float(row[mask][0]) for row, mask in zip(piece.advantages, piece.loss_mask, strict=True)]
        assert sorted(signs) == [-1, 1]
        assert (piece.rewards[0] > piece.rewards[1]) == (signs[0] > signs[1])
    trained = [row for row, trains in zip(keys_of(batch), batch.trains.tolist(), strict=True) if trains]
    assert sorted(row for piece in pieces[:4] for row in keys_of(piece)) == sorted(trained)
    assert stats["trained_share"] == 0.5


def test_what_was_kept_is_one_completion_of_each_prompt(trained_on) -> None:
    batch, pieces, stats = trained_on("rejection")
    assert [len(piece) for piece in pieces] == [1] * 4
    assert len({piece.prompts[0] for piece in pieces}) == 4
    best = batch.rewards.reshape(4, 4).amax(dim=1).tolist()
    assert sorted(float(piece.rewards[0]) for piece in pieces) == sorted(best)
    assert stats["trained_share"] == 0.25
    # a step's loss is a mean over its own tokens
    assert stats["loss"] > 1.0


def test_prompts_whose_completions_are_equally_good_make_no_pair(trained_on) -> None:
    """One prompt has differences only: three pairs fewer, and one step instead of four."""
    batch, pieces, stats = trained_on("online_dpo", lambda ids: 0.0)
    assert (len(pieces), stats["loss"], stats["grad_norm"], stats["trained_share"]) == (0, 0.0, 0.0, 0.0)
    assert not batch.trains.any()
    rewards = iter([0, 0, 0, 0, 0, 0, 0, 1] + [0] * 8)
    batch, pieces, stats = trained_on("online_dpo", lambda ids: float(next(rewards)))
    assert [len(piece) for piece in pieces] == [2]
    assert stats["trained_share"] == 0.125


@pytest.mark.parametrize("keys", [{}, {"plot_loss": True, "val_size": 2, "lr_scheduler_type": "cosine"}])
def test_a_run_in_which_nothing_is_worth_imitating_ends_as_it_began(tiny_config, tmp_path, keys) -> None:
    config = tiny_config(
        "rejection",
        tmp_path / "out",
        reward_funcs="length:2-6",
        num_return_sequences=2,
        reward_threshold=9.0,
        max_steps=2,
        **keys,
    )
    results = train(config)
    assert results["stopped_at_step"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["loss"] for line in trained] == [0.0, 0.0]
    assert [line["trained_share"] for line in trained] == [0.0, 0.0]
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
