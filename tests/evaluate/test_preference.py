import dataclasses
import math

import pytest
import torch

from posttrain.errors import UserError
from posttrain.evaluate.bootstrap import estimates
from posttrain.evaluate.preference import MEASURES, preference_groups, preference_records
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


def figures(records):
    return {name: found.value for name, found in estimates(MEASURES, records, seed=1, level=0.95).items()}


def measured(wardrobe, pairs, size=5):
    records = preference_records(wardrobe, pairs, batch_size=size, progress=lambda *call: None)
    scores = {
        name: torch.tensor([[r["chosen_score"], r["rejected_score"]] for r in each]) for name, each in records.items()
    }
    return {name: figures(each) for name, each in records.items()}, scores


def test_by_hand(wardrobe, pairs):
    # pairs (2, 1), (0, 0), (1, 3): one right, a tie counts as wrong; -logsigmoid of 1, 0, -2
    scoring = Scoring(wardrobe.tokenizer, wardrobe.reward, [2.0, 1.0, 0.0, 0.0, 1.0, 3.0])
    metrics, scores = measured(scoring, pairs[:3], size=2)
    found = metrics["reward"]
    assert scores["reward"].tolist() == [[2.0, 1.0], [0.0, 0.0], [1.0, 3.0]]
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx((0.313262 + 0.693147 + 2.126928) / 3, abs=1e-5)
    assert found["margin"] == pytest.approx(-1 / 3)
    # confidences 0.731 (right), 0.5 (a tie, wrong), 0.881 (wrong) lie in bins of their own
    assert found["calibration_error"] == pytest.approx(((1 - 0.731059) + 0.5 + 0.880797) / 3, abs=1e-5)


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


def pair(chosen, rejected, lengths=(5, 5), data_margin=None):
    return {
        "chosen_score": chosen,
        "rejected_score": rejected,
        "correct": chosen > rejected,
        "loss": 0.0,
        "margin": chosen - rejected,
        "data_margin": data_margin,
        "chosen_length": lengths[0],
        "rejected_length": lengths[1],
    }


def test_a_model_that_is_as_often_right_as_it_says_is_calibrated():
    # a difference of log 3 is a confidence of 3/4: right in three of four pairs
    gap = math.log(3)
    records = [pair(gap, 0), pair(gap, 0), pair(gap, 0), pair(0, gap)]
    assert figures(records)["calibration_error"] == pytest.approx(0.0, abs=1e-9)
    assert figures([pair(0, gap)] * 4)["calibration_error"] == pytest.approx(0.75)


def test_sharper_scores_change_the_calibration_and_not_the_accuracy():
    records = [pair(1, 0), pair(1, 0), pair(0, 1)]
    sharper = [pair(10 * r["chosen_score"], 10 * r["rejected_score"]) for r in records]
    assert figures(records)["accuracy"] == figures(sharper)["accuracy"]
    assert figures(sharper)["calibration_error"] == pytest.approx(1 / 3, abs=1e-3)


def test_the_length_bias_of_a_line_is_its_slope():
    # score difference = 0.5 + 0.02 per token
    records = [pair(0.5 + 0.02 * d, 0.0, lengths=(50 + d, 50)) for d in (-20, -3, 0, 8, 31)]
    found = figures(records)
    assert found["length_slope"] == pytest.approx(2.0)
    assert found["length_correlation"] == pytest.approx(1.0)
    blind = [pair(0.5 + 0.1 * (-1) ** i, 0.0, lengths=(50 + 7 * (i // 2), 50)) for i in range(8)]
    assert figures(blind)["length_slope"] == pytest.approx(0.0, abs=1e-9)


def test_equal_lengths_have_no_length_bias_to_tell():
    found = figures([pair(1, 0), pair(0, 2), pair(0.3, 0.1)])
    assert (found["length_slope"], found["length_correlation"]) == (None, None)


def test_accuracy_in_parts_by_hand():
    records = [
        pair(0.1, 0.0, (9, 5), 1.0),
        pair(0.0, 0.2, (5, 9), 1.0),
        pair(2.0, 0.0, (30, 5), 2.0),
        pair(3.0, 0.0, (5, 5), 3.0),
    ]
    found = preference_groups(records, level=0.95)
    assert {name: part["num_pairs"] for name, part in found["by_length"].items()} == {
        "chosen shorter by 4 or more": 1,
        "chosen same": 1,
        "chosen longer by 4 or more": 2,
    }
    assert found["by_length"]["chosen longer by 4 or more"]["accuracy"] == 1.0
    assert found["by_length"]["chosen shorter by 4 or more"]["accuracy"] == 0.0
    assert [part["accuracy"] for part in found["by_margin"].values()] == [1.0, 0.0, 1.0, 1.0]
    assert list(found["by_data_margin"]) == ["1 to 1", "2 to 2", "3 to 3"]
    assert sum(part["num_pairs"] for part in found["by_confidence"].values()) == 4
    # the longer answer is chosen in two of the three pairs of different lengths, and preferred in all of them
    assert found["longer"]["longer_chosen"] == pytest.approx(2 / 3)
    assert found["longer"]["longer_preferred"] == 1.0
    assert "by_data_margin" not in preference_groups([pair(1, 0)], level=0.95)


def test_lengths_are_those_of_the_answers(wardrobe, pairs):
    records = preference_records(wardrobe, pairs[:2], batch_size=2, progress=lambda *call: None)["reward"]
    for record, each in zip(records, pairs[:2], strict=True):
        assert record["chosen_length"] == sum(each.chosen.loss_mask) < len(each.chosen.input_ids)
        assert record["rejected_length"] == sum(each.rejected.loss_mask)
