"""Rankings of several answers: rows, encoding, batches."""

from __future__ import annotations

import pytest
import torch

from posttrain.config import load_config
from posttrain.data.batches import collate_preferences
from posttrain.data.datasets import load_dataset
from posttrain.data.encode import EncodedPair
from posttrain.data.formats import Layout, UnusableRowError
from posttrain.data.rankings import EncodedRanking, is_ranking, ranking_example
from posttrain.data.template import EncodedRow
from posttrain.models.load import load_tokenizer

LAYOUT = Layout(columns={"prompt": "prompt", "response": "ranked"})


def row(*answers):
    return {"prompt": "name a fruit", "ranked": list(answers)}


def encoded(*lengths):
    return EncodedRanking(tuple(EncodedRow([1, 2, *[9] * n], [False, False, *[True] * n]) for n in lengths))


def test_two_answers_are_a_pair_and_more_a_ranking():
    assert not is_ranking(row("a", "b"), LAYOUT)
    assert is_ranking(row("a", "b", "c"), LAYOUT)
    assert ranking_example(row("a", "b", "c"), LAYOUT, "here").answers == ("a", "b", "c")


def test_an_answer_that_stands_there_twice_keeps_its_better_place():
    assert ranking_example(row("a", "b", "a", "c"), LAYOUT, "here").answers == ("a", "b", "c")
    with pytest.raises(UnusableRowError, match="all ranked answers are the same"):
        ranking_example(row("a", "a", "a"), LAYOUT, "here")


def test_weights_make_rankings_count_the_same():
    pair = EncodedPair(*encoded(1, 2).rows)
    batch = collate_preferences([encoded(1, 2, 3), pair, encoded(2, 1, 1, 4)], 0)
    assert [list(unit) for unit in batch.units(1)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    # 9 rows in 3 rankings of 3, 1 and 6 pairs: a ranking's pairs weigh 9 / 3 together
    assert batch.weight.tolist() == pytest.approx([1.0] * 3 + [3.0] * 2 + [0.5] * 4)
    part = batch.rows(torch.tensor([3, 4, 5, 6, 7, 8]))
    assert [len(unit) for unit in part.units(1)] == [2, 4]


def test_pairs_alone_stay_pairs():
    pair = EncodedPair(*encoded(1, 2).rows)
    assert collate_preferences([pair, pair], 0).margins is None


@pytest.mark.parametrize(("stage", "kinds"), [("rm", [3]), ("dpo", [2, 2, 2])])
def test_a_dataset_of_rankings(tiny_llama, tmp_path, stage, kinds):
    path = tmp_path / "rankings.jsonl"
    path.write_text('{"prompt": "name a fruit", "ranked": ["fig", "a fig", "no"]}\n', encoding="utf-8")
    config = load_config({"stage": stage, "model_name_or_path": "m", "dataset": str(path), "output_dir": "o"})
    rows = load_dataset(config.data, load_tokenizer(tiny_llama), stage).train
    assert [len(item.rows) if isinstance(item, EncodedRanking) else 2 for item in rows] == kinds
