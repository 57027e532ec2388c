"""A journal outlives whatever happens to the process that writes it."""

import pytest

from posttrain.errors import RunError, UserError
from posttrain.serve.journal import Journal

SETTINGS = {"judge": "referee", "scale": (1, 10), "nested": {"seed": 1}}


def written(path, *records, **settings):
    with Journal(path, {**SETTINGS, **settings}) as journal:
        for record in records:
            journal.add(record)
    return path


def test_what_was_added_is_there_the_next_time(tmp_path):
    path = written(tmp_path / "deep" / "j.jsonl", {"row": 0, "said": "好\nB"}, {"row": 1})
    with Journal(path, SETTINGS) as journal:
        assert journal.records == [{"row": 0, "said": "好\nB"}, {"row": 1}]
        journal.add({"row": 2})
        assert journal.records[-1] == {"row": 2}
    assert path.read_text(encoding="utf-8").count("\n") == 4


@pytest.mark.parametrize("kept", range(1, 60))
def test_a_line_that_was_cut_off_is_taken_away_wherever_it_was_cut(tmp_path, kept):
    whole = written(tmp_path / "j.jsonl", {"row": 0}, {"row": 1, "said": "好"}).read_bytes()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(whole[:-kept])
    with Journal(cut, SETTINGS) as journal:
        rows = [record["row"] for record in journal.records]
        assert rows == [0, 1][: len(rows)]
        for record in ({"row": 0}, {"row": 1, "said": "好"})[len(rows) :]:
            journal.add(record)
    assert cut.read_bytes() == whole


def test_every_record_is_on_the_disk_as_soon_as_it_is_added(tmp_path):
    with Journal(tmp_path / "j.jsonl", SETTINGS) as journal:
        journal.add({"row": 0})
        assert (tmp_path / "j.jsonl").read_text(encoding="utf-8").endswith('{"row": 0}\n')


def test_a_journal_of_other_work_is_refused_by_name(tmp_path):
    path = written(tmp_path / "j.jsonl", {"row": 0})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"j\.jsonl was begun with judge \"referee\" \(now \"other\"\)"):
        Journal(path, {**SETTINGS, "judge": "other"})
    with pytest.raises(UserError, match="another nested"):
        Journal(path, {**SETTINGS, "nested": {"seed": 2}})
    with pytest.raises(UserError, match=r"begun with model null \(now 1\)"):
        Journal(path, {**SETTINGS, "model": 1})
    assert path.read_bytes() == before
    with Journal(written(tmp_path / "empty.jsonl"), {**SETTINGS, "judge": "other"}) as journal:  # it loses nothing
        assert journal.records == []
    assert '"other"' in (tmp_path / "empty.jsonl").read_text(encoding="utf-8")
    with Journal(path, {**SETTINGS, "judge": "other"}, start_over=True) as journal:
        assert journal.records == []
    assert b'"row"' not in path.read_bytes()


def test_a_file_that_is_none_is_left_alone(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"prompt": "mine"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="is no journal"):
        Journal(path, SETTINGS)
    assert path.read_text(encoding="utf-8") == '{"prompt": "mine"}\n'


def test_a_damaged_line_in_the_middle_is_said_with_its_number(tmp_path):
    path = written(tmp_path / "j.jsonl", {"row": 0}, {"row": 1})
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + '{"row"\n' + lines[2], encoding="utf-8")
    with pytest.raises(UserError, match=r"j\.jsonl, line 2: damaged"):
        Journal(path, SETTINGS)


def test_a_place_that_cannot_be_written_to_fails_the_run(tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written"):
        Journal(tmp_path / "taken" / "j.jsonl", SETTINGS)
