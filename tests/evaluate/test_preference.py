import dataclasses

import pytest
import torch

from posttrain.errors import UserError
from posttrain.evaluate.preference import measure_preference
from posttrain.evaluate.rows import read_rows
from posttrain.evaluate.wardrobe import load_wearing


class Scoring:
    """A wardrobe whose reward model gives each sequence the next number of a list."""

    def __init__(self, tokenizer, outfit, scores):
        self.tokenizer, self.reward, self.variants = tokenizer, outfit, {}
        self.left = list(scores)

    def scores(self, outfit, batch):
        taken, self.left = self.left[: len(batch)], self.left[len(batch) :]
        return torch.tensor(taken)


@pytest.fixture(scope="module")
def wardrobe(eval_config, trained):
    return load_wearing(eval_config(reward_model=str(trained / "rm")))


@pytest.fixture(scope="module")
def pairs(eval_config, wardrobe, tiny_data):
    config = eval_config(eval_dataset=str(tiny_data / "pairs.json"))
    return read_rows(config, wardrobe.tokenizer, "rm")[0]


def measured(wardrobe, pairs, size=5):
    return measure_preference(wardrobe, pairs, batch_size=size, level=0.95, progress=lambda *call: None)


def test_by_hand(wardrobe, pairs):
    # pairs (2, 1), (0, 0), (1, 3): one right, a tie counts as wrong; -logsigmoid of 1, 0, -2
    scoring = Scoring(wardrobe.tokenizer, wardrobe.reward, [2.0, 1.0, 0.0, 0.0, 1.0, 3.0])
    metrics, scores = measured(scoring, pairs[:3], size=2)
    found = metrics["reward"]
    assert scores["reward"].tolist() == [[2.0, 1.0], [0.0, 0.0], [1.0, 3.0]]
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx((0.313262 + 0.693147 + 2.126928) / 3, abs=1e-5)
    assert (found["margin"], found["num_pairs"]) == (pytest.approx(-1 / 3), 3)
    assert (found["chosen_score"], found["rejected_score"]) == (pytest.approx(1.0), pytest.approx(4 / 3))
    assert found["accuracy_interval"][0] < 1 / 3 < found["accuracy_interval"][1]


def test_margins_of_the_data_enter_the_loss(wardrobe, pairs):
    wanted = [dataclasses.replace(pairs[0], margin=3.0)]
    scoring = Scoring(wardrobe.tokenizer, wardrobe.reward, [2.0, 1.0])
    # -logsigmoid(2 - 1 - 3)
    assert measured(scoring, wanted)[0]["reward"]["loss"] == pytest.approx(2.126928, abs=1e-5)


def test_a_trained_reward_model_ranks_its_pairs_and_not_the_swapped_ones(wardrobe, pairs):
    swapped = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    (right, scores), (wrong, mirrored) = measured(wardrobe, pairs), measured(wardrobe, swapped, size=12)
    assert right["reward"]["accuracy"] > 0.8
    assert wrong["reward"]["accuracy"] == pytest.approx(1 - right["reward"]["accuracy"])
    torch.testing.assert_close(scores["reward"], mirrored["reward"].flip(1), atol=1e-5, rtol=0)


def test_reward_folders_may_be_variants(eval_config, trained, wardrobe, pairs):
    several = load_wearing(eval_config(variants=[f"one={trained / 'rm'}", f"two={trained / 'rm_on_sft'}"]))
    metrics, _ = measured(several, pairs)
    assert metrics["one"]["margin"] == pytest.approx(measured(wardrobe, pairs)[0]["reward"]["margin"], abs=1e-4)
    assert metrics["two"]["margin"] != pytest.approx(metrics["one"]["margin"], abs=1e-2)


def test_a_variant_without_a_head_is_refused(eval_config, trained, pairs):
    with pytest.raises(UserError, match="no reward head"):
        measured(load_wearing(eval_config(adapter_name_or_path=str(trained / "sft"))), pairs)
