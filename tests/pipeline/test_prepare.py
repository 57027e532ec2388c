import dataclasses

import pytest

from posttrain.config import PreparedData
from posttrain.errors import UserError
from posttrain.pipeline.prepare import check_prepared, files_are_there, prepare, prepared_digest

SMALL = {"num_tables": 10, "num_pretrain": 2, "num_pretrain_heldout": 2, "num_sft": 2, "num_pairs": 2}
SMALL |= {"num_heldout_pairs": 2, "num_prompts": 2, "num_heldout": 2}


@pytest.fixture
def prepared(tmp_path):
    return PreparedData(generator="text2sql", output=str(tmp_path / "data"), seed=3, options=SMALL)


def nothing(done, total):
    pass


def test_files_are_written_and_known_by_their_content(prepared, tmp_path):
    assert not files_are_there(prepared)
    contents = prepare(prepared, nothing)
    assert files_are_there(prepared)
    assert prepare(prepared, nothing) == contents
    other = dataclasses.replace(prepared, seed=4)
    assert prepare(other, nothing) != contents


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_file_that_changed_or_is_gone_is_noticed(prepared, tmp_path, damage):
    prepare(prepared, nothing)
    file = tmp_path / "data" / "sft.json"
    file.write_text("[]", encoding="utf-8") if damage == "change" else file.unlink()
    assert not files_are_there(prepared)


def test_every_argument_counts(prepared):
    changes = [{"seed": 4}, {"output": "elsewhere"}, {"options": {**SMALL, "num_sft": 3}}]
    digests = {prepared_digest(prepared)} | {prepared_digest(dataclasses.replace(prepared, **c)) for c in changes}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": "text2sq"}, "no generator `text2sq`; there is text2sql"),
        ({"options": {"num_stf": 3}}, "did you mean `num_sft`"),
        ({"options": {"colour": 3}}, "it has num_pretrain"),
        ({"options": {"num_sft": "many"}}, "must be a number such as 400, not 'many'"),
        ({"options": {"num_sft": 2.5}}, "must be a number"),
        ({"options": {"num_sft": True}}, "must be a number"),
        ({"options": {"languages": "en"}}, "must be a list of texts"),
        ({"options": {"progress": 1}}, "no option `progress`"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(prepared, changes, words):
    with pytest.raises(UserError, match=words):
        check_prepared(dataclasses.replace(prepared, **changes))


def test_what_can_work_is_accepted(prepared):
    check_prepared(dataclasses.replace(prepared, options={**SMALL, "languages": ["en"], "chinese_share": 0}))
