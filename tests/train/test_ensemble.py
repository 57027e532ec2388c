"""Several reward models on one backbone: each scores as it does alone, and the run logs where they disagree."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.errors import UserError
from posttrain.models.assemble import online_assembly
from posttrain.rewards import EnsembleReward
from posttrain.train.run import train
from posttrain.types import Role


@pytest.fixture
def members(trained, tiny_config, tmp_path):
    """Folders of three reward models: on the base, on the SFT adapter, and on the base from another seed."""
    other = tmp_path / "rm-2"
    train(tiny_config("rm", other, learning_rate=2e-2, num_train_epochs=3, save_strategy="no", seed=5))
    return [trained / "rm", trained / "rm_on_sft", other]


def score(tiny_config, folder, batch, **keys):
    roles = online_assembly(tiny_config("rloo", "unused", reward_model=str(folder), **keys)).roles
    with torch.no_grad():
        return [roles.member_scores(batch, number) for number in range(roles.num_reward_models)]


@pytest.mark.parametrize("adapter", [None, "sft"])
def test_each_member_scores_as_it_does_alone(tiny_config, trained, members, make_batch, adapter) -> None:
    keys = {"adapter_name_or_path": str(trained / adapter)} if adapter else {}
    batch = make_batch([[5, 9, 30, 31, 2], [7, 8, 200, 3], [11, 12, 13]])
    alone = [score(tiny_config, folder, batch, **keys)[0] for folder in members]
    ensemble = ",".join(map(str, members[1:]))
    together = score(tiny_config, members[0], batch, reward_ensemble=ensemble, **keys)
    assert len(together) == 3
    for mine, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone[0], alone[2])


def test_what_trains_is_what_trained_without_an_ensemble(tiny_config, members) -> None:
    keys = {"reward_model": str(members[0])}
    plain = online_assembly(tiny_config("rloo", "unused", **keys)).roles
    more = online_assembly(tiny_config("rloo", "unused", **keys, reward_ensemble=str(members[1]))).roles
    assert plain.parameters_of(Role.ACTOR).keys() == more.parameters_of(Role.ACTOR).keys()
    trains = {name for name, parameter in more.named_parameters() if parameter.requires_grad}
    assert trains == set(more.parameters_of(Role.ACTOR))


def test_the_mean_less_a_part_of_the_deviation() -> None:
    # scores 1 and 3: mean 2, deviation 1; 4 and 4: mean 4, deviation 0
    first, second = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.0])
    reward = EnsembleReward([lambda batch: first, lambda batch: second], disagreement_coef=0.5)
    assert reward(None).tolist() == [1.5, 4.0]
    assert {name: values.tolist() for name, values in reward.last.items()} == {
        "reward_model_1": [1.0, 4.0],
        "reward_model_2": [3.0, 4.0],
        "disagreement": [1.0, 0.0],
    }


def test_a_run_with_an_ensemble_logs_disagreement(tiny_config, members, tmp_path) -> None:
    config = tiny_config(
        "rloo",
        tmp_path / "out",
        reward_model=str(members[0]),
        reward_ensemble=str(members[2]),
        reward_disagreement_coef=0.5,
        max_steps=2,
        save_strategy="no",
    )
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        first, second = row["reward/reward_model_1"], row["reward/reward_model_2"]
        assert row["reward/disagreement"] == pytest.approx(abs(first - second) / 2, abs=1e-5)
        assert row["reward"] == pytest.approx((first + second) / 2 - 0.25 * abs(first - second), abs=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert any("reward/disagreement_mean" in line for line in lines)


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"reward_funcs": "length:2-6", "reward_ensemble": "x"}, "goes with `reward_model`"),
        ({"reward_model": "x", "reward_disagreement_coef": 0.5}, "needs an ensemble"),
    ],
)
def test_an_ensemble_of_one_is_refused(tiny_config, keys, part) -> None:
    with pytest.raises(UserError, match=part):
        tiny_config("rloo", "unused", **keys)
