"""Made-up passages: the same from the same seed, no held-out name in training, mistakes that the check sees."""

import json
from random import Random

import pytest

from posttrain.data.question_generation import DATASET_INFO, generate, verdict
from posttrain.data.question_generation.mistakes import MISTAKES, bad_question, good_question, hasty_question
from posttrain.data.question_generation.subjects import draw_passage, kinds
from posttrain.errors import UserError

SMALL = {"num_sft": 400, "num_pairs": 200, "num_prompts": 80, "num_heldout": 80, "num_heldout_pairs": 80}


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return folder, generate(folder, seed=3, **SMALL)


@pytest.fixture(scope="module")
def passages():
    rng = Random(5)
    made = []
    for kind in kinds().values():
        for _ in range(30):
            subject, neighbour = kind.subject(rng), kind.subject(rng)
            if subject != neighbour:
                made.append((draw_passage(kind, subject, neighbour, rng), neighbour))
    return made


def judged(question, passage):
    return verdict(question, kind=passage.kind.name, subject=passage.subject, stated=passage.stated)


def test_the_same_seed_gives_the_same_bytes(data, tmp_path):
    folder, manifest = data
    assert generate(tmp_path / "again", seed=3, **SMALL).digests == manifest.digests
    assert generate(tmp_path / "other", seed=4, **SMALL).digests != manifest.digests
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["digests"] == manifest.digests
    named = {entry["file_name"] for entry in DATASET_INFO.values()}
    assert named == set(manifest.counts) == set(manifest.digests) - {"dataset_info.json"}


def test_no_name_of_a_held_out_text_occurs_in_a_training_file(data):
    folder, _ = data
    rows = [row for name in ("sft.jsonl", "pairs.jsonl", "prompts.jsonl") for row in read(folder, name)]
    training = "\n".join(row[column] for row in rows for column in ("content", "query", "chosen") if column in row)
    held_out = [row["subject"] for row in read(folder, "heldout.jsonl")]
    assert len(set(held_out)) > 70
    assert [name for name in held_out if name in training] == []


def test_every_kind_has_texts_and_every_attribute_questions():
    assert len(kinds()) >= 8
    for kind in kinds().values():
        assert len(kind.attributes) >= 5
        asks = [ask for attribute in kind.attributes.values() for ask in attribute.asks]
        assert len(set(asks)) == len(asks) >= 10
        assert all(ask.count("{n}") == 1 and ask.endswith("？") for ask in asks)
        assert all(state.count("{v}") == 1 for a in kind.attributes.values() for state in a.states)


def test_every_good_question_is_good(passages):
    for passage, _ in passages:
        assert 2 <= len(passage.stated) <= 4
        assert passage.subject in passage.text
        for question in passage.good_questions:
            assert judged(question, passage).good
            assert judged(" ".join(question), passage).good  # blanks of a tokenizer do not count


def test_questions_about_what_is_not_stated_are_not_answerable(passages):
    for passage, _ in passages:
        for attribute in passage.unstated:
            for question in passage.questions(attribute):
                found = judged(question, passage)
                assert (found.answerable, found.good) == (False, False)
                assert found.ends
                assert found.names


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_mistake_is_taken_for_a_good_question(mistake, passages):
    rng = Random(1)
    for passage, neighbour in passages:
        question = good_question(passage, rng)
        worse = MISTAKES[mistake][0](passage, question, neighbour, rng)
        assert worse in passage.good_questions or not judged(worse, passage).good, (question, worse)


def test_the_check_says_what_is_wrong():
    about = {"kind": "bridge", "subject": "虹云桥", "stated": ["length", "built"]}
    assert verdict("虹云桥有多长？", **about).good
    found = verdict("这座桥有多长？", **about)
    assert (found.ends, found.names, found.answerable, found.well_formed) == (True, False, True, False)
    found = verdict("虹云桥的设计者是谁？", **about)
    assert (found.names, found.answerable, found.well_formed) == (True, False, True)
    found = verdict("虹云桥有多长", **about)
    assert (found.ends, found.answerable, found.well_formed) == (False, True, False)
    found = verdict("虹云桥虹云桥有多长？", **about)
    assert (found.names, found.good) == (False, False)
    assert verdict("", **about) == verdict("嗯嗯嗯", **about)


def test_a_bad_question_is_never_one_of_the_good_ones(passages):
    rng = Random(2)
    seen = set()
    for passage, neighbour in passages * 4:
        name, question = bad_question(passage, good_question(passage, rng), neighbour, rng)
        assert question not in passage.good_questions
        seen.add(name)
    assert seen == set(MISTAKES)


def test_hasty_questions_name_nobody(passages):
    rng = Random(3)
    for passage, _ in passages:
        assert passage.subject not in hasty_question(passage, rng)


def test_the_share_of_hasty_questions(tmp_path):
    for share in (0.0, 1.0):
        generate(tmp_path / str(share), seed=1, **SMALL, hasty_share=share)
    assert all("《" in row["query"] for row in read(tmp_path / "0.0", "sft.jsonl") if "《" in row["content"][:1])
    assert not any("《" in row["query"] for row in read(tmp_path / "1.0", "sft.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hasty_share": 1.5}, "hasty_share is 1.5: it must lie between 0 and 1"),
        ({"num_sft": 0}, "num_sft is 0: it must be at least 1"),
    ],
)
def test_what_cannot_work(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        generate(tmp_path, **{**SMALL, **options})


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be created"):
        generate(tmp_path / "taken", **SMALL)
