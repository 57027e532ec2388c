"""The list of mutants is current: every mutant applies, and the tests that it names are there."""

from collections import Counter
from pathlib import Path

import pytest

ROOMS = {
    "functional",
    "algorithms",
    "models",
    "rollout",
    "rewards",
    "data",
    "engine",
    "train",
    "serve",
    "diagnose",
    "evaluate",
}


@pytest.fixture(scope="module")
def mutants(lists):
    return lists.read_mutants()


def test_every_mutant_still_applies(lists, mutants) -> None:
    assert lists.stale(mutants) == []


def test_every_room_is_sabotaged(mutants) -> None:
    assert len(mutants) >= 60
    assert {mutant.room for mutant in mutants} == ROOMS


def test_the_sample_has_one_mutant_of_each_room_and_all_are_killed(mutants) -> None:
    sample = [mutant for mutant in mutants if mutant.sample]
    assert Counter(mutant.room for mutant in sample) == dict.fromkeys(ROOMS, 1)
    assert not any(mutant.survives for mutant in sample)


@pytest.fixture
def package(tmp_path):
    """(write, root): a project of one file, one test, and a list with one mutant whose keys can be replaced."""
    root = tmp_path / "project"
    (root / "src" / "posttrain" / "room").mkdir(parents=True)
    (root / "src" / "posttrain" / "room" / "sums.py").write_text("a = 1 + 2\nb = 1 - 2\nc = 1 - 2\n", encoding="utf-8")
    (root / "tests").mkdir()
    (root / "tests" / "test_sums.py").write_text("def test_sum():\n    pass\n", encoding="utf-8")

    def write(**changes) -> Path:
        keys = {"name": "minus", "wrong": "a sign", "file": "room/sums.py", "old": "1 + 2", "new": "1 - 2"}
        keys |= {"tests": ["tests/test_sums.py::test_sum"], **changes}
        lines = [f"{key} = {value!r}" for key, value in keys.items() if value is not None]
        (tmp_path / "room.toml").write_text("\n".join(("[[mutant]]", *lines)), encoding="utf-8")
        return tmp_path

    return write, root


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"old": "1 - 2"}, "minus: its `old` text occurs 2 times in room/sums.py, not once"),
        ({"old": "1 * 2"}, "minus: its `old` text occurs 0 times in room/sums.py, not once"),
        ({"new": "(1 + 2)"}, "minus: `new` says the same as `old`"),
        ({"file": "room/gone.py"}, "minus: there is no room/gone.py"),
        ({"tests": ["tests/test_gone.py"]}, "minus: there is no tests/test_gone.py"),
        ({"tests": ["tests/test_sums.py::test_gone"]}, "minus: tests/test_sums.py has no test_gone"),
    ],
)
def test_what_is_out_of_date_is_said(lists, package, changes, complaint) -> None:
    write, root = package
    found = lists.stale(lists.read_mutants(write(**changes)), root=root)
    assert found == ([] if complaint is None else [complaint])


def test_what_is_no_python_is_said(lists, package) -> None:
    write, root = package
    (complaint,) = lists.stale(lists.read_mutants(write(new="1 +")), root=root)
    assert complaint.startswith("minus: room/sums.py is no Python any more (")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrong": None}, "mutant 'minus': .*'wrong'"),
        ({"reason": "none"}, "mutant 'minus': .*'reason'"),
        ({"tests": []}, "minus: names no test"),
    ],
)
def test_a_damaged_list_is_refused(lists, package, changes, words) -> None:
    write, _ = package
    with pytest.raises(lists.ListError, match=words):
        lists.read_mutants(write(**changes))


def test_names_are_unique(lists, package, tmp_path) -> None:
    write, _ = package
    folder = write()
    (folder / "second.toml").write_text((folder / "room.toml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(lists.ListError, match="two mutants are called minus"):
        lists.read_mutants(folder)


def test_a_draw_follows_its_seed_and_keeps_the_order(lists, mutants) -> None:
    drawn = lists.chosen(mutants, sample=9, seed=1)
    assert len(drawn) == 9
    assert drawn == sorted(drawn, key=mutants.index) == lists.chosen(mutants, sample=9, seed=1)
    assert drawn != lists.chosen(mutants, sample=9, seed=2)
    assert lists.chosen(mutants) == mutants
    assert {mutant.room for mutant in lists.chosen(mutants, only="engine/")} == {"engine"}
