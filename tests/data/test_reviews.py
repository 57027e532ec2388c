"""The reviews: the same bytes for the same seed, pairs of which one praises more, no held-out subject in training."""

import json

import pytest

from posttrain.config import load_config
from posttrain.data.datasets import read_examples
from posttrain.data.encode import Report
from posttrain.data.reviews import DATASET_INFO, Tone, generate, tone
from posttrain.data.reviews.words import kinds, places
from posttrain.errors import UserError

FEW = {"num_sft": 60, "num_pairs": 60, "num_prompts": 40, "num_heldout": 30, "num_heldout_pairs": 20}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("reviews") / "data", seed=3, **FEW)


def rows(made, name):
    return [json.loads(line) for line in (made.directory / name).read_text(encoding="utf-8").splitlines()]


def test_a_seed_decides_about_every_byte(made, tmp_path):
    again = generate(tmp_path / "again", seed=3, **FEW)
    other = generate(tmp_path / "other", seed=4, **FEW)
    assert again.digests == made.digests
    assert {name for name in made.digests if other.digests[name] == made.digests[name]} == {"dataset_info.json"}
    for name in made.digests:
        assert (again.directory / name).read_bytes() == (made.directory / name).read_bytes()
    assert json.loads((made.directory / "manifest.json").read_text(encoding="utf-8"))["counts"] == dict(made.counts)


def test_tones_by_hand():
    assert tone("昨天去了城东的面馆，菜很新鲜，等了一个小时，下次一定再来。") == Tone(2, 1)
    assert tone("菜很新鲜，菜很新鲜。").praise == 2
    assert tone("菜很新，鲜") == Tone(0, 0)
    assert tone("").share is None
    assert Tone(1, 3).share == 0.25


def test_clauses_can_be_told_apart():
    every = [
        clause
        for kind in kinds().values()
        for side in (*kind.sides, kind.closing)
        for clause in (*side.praise, *side.blame)
    ]
    assert not [(one, other) for one in every for other in every if one != other and one in other]
    openings = [opening for kind in kinds().values() for opening in kind.openings]
    assert all("{name}" in opening and tone(opening) == Tone(0, 0) for opening in openings)
    assert all(len(kind.sides) >= 3 for kind in kinds().values())


def test_the_chosen_review_praises_more_and_blames_less(made):
    pairs = [*rows(made, "pairs.jsonl"), *rows(made, "pairs_heldout.jsonl")]
    for row in pairs:
        chosen, rejected = tone(row["chosen"]), tone(row["rejected"])
        assert chosen.praise > rejected.praise
        assert chosen.blame < rejected.blame
        assert chosen.praise + chosen.blame == rejected.praise + rejected.blame
    assert len({tone(row["chosen"]).praise - tone(row["rejected"]).praise for row in pairs}) >= 3


def test_texts_are_of_every_mood(made):
    shares = [tone(row["rest"]).share for row in rows(made, "sft.jsonl")]
    assert {0.0, 1.0} < set(shares)
    assert 0.35 < sum(shares) / len(shares) < 0.65


def test_no_held_out_subject_is_trained_on(made):
    held_out = {row["subject"] for row in rows(made, "heldout.jsonl")}
    trained = "".join(
        (made.directory / name).read_text(encoding="utf-8") for name in ("sft.jsonl", "pairs.jsonl", "prompts.jsonl")
    )
    assert len(held_out) > 10
    assert not [subject for subject in held_out if subject in trained]
    assert len(places()) == len(set(places()))


def test_every_file_is_read_by_its_stage(made):
    stages = {"sft": "sft", "pairs": "rm", "prompts": "ppo", "heldout": "ppo"}
    for name in DATASET_INFO:
        stage = next(stage for word, stage in stages.items() if name.removeprefix("reviews_").startswith(word))
        keys = {"model_name_or_path": "x", "dataset": name, "dataset_dir": str(made.directory)}
        report = Report()
        found = read_examples([name], load_config(keys, command="generate").data, stage, report)
        assert len(found) == report.rows_read == made.counts[DATASET_INFO[name]["file_name"]]
    assert found[0].prompt[0].content.endswith("，")


def test_what_cannot_be_made_is_said(tmp_path):
    with pytest.raises(UserError, match=r"pairs\.jsonl would have 0 rows"):
        generate(tmp_path / "x", num_pairs=0)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be created"):
        generate(tmp_path / "file")
