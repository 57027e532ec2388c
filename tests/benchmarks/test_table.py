"""The table follows from the stored pairs; the page holds the table."""

from __future__ import annotations

import json

import pytest
from benchmarks.compare import __main__ as command
from benchmarks.compare.rows import ROWS, STAGES, chosen
from benchmarks.compare.table import BEGIN, END, NOTHING, PAGE, RESULTS, table, with_table


@pytest.fixture
def stored(tmp_path, answer):
    """Write the pairs of a row; returns the folder."""

    def make(stage="sft", name="tuned", *, drifts=(0.0,), peer=4.0, ours=1.0, **more):
        path = tmp_path / f"{stage}.json"
        content = json.loads(path.read_text("utf-8")) if path.exists() else {"stage": stage, "rows": {}}
        pairs = [
            {
                "peer": answer(peer),
                "ours": answer(ours, peak_rss_bytes=600_000_000, **more),
                "drift": drift,
                "sampled": False,
            }
            for drift in drifts
        ]
        content["rows"][name] = {"pairs": pairs}
        path.write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return make


def cells(folder):
    head, rule, *lines = table(folder).splitlines()
    assert head.count("|") == rule.count("|")
    assert all(line.count("|") == head.count("|") for line in lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_holds_the_table_of_the_stored_results() -> None:
    """After new results: ``python -m benchmarks.compare --table``."""
    page = PAGE.read_text("utf-8")
    assert page == with_table(page, table(RESULTS))


def test_a_row_says_how_much_faster_and_whether_that_was_asked_for(stored) -> None:
    (found,) = cells(stored(drifts=(0.0, 0.02, 0.3)))
    assert found == [
        *("sft", "TRL 1.16", "float32, no gradient checkpointing", "2 (of 3)"),
        *("4.00x [4.00, 4.00]", "4.00x [4.00, 4.00]", "≥ 2.5x ✓"),
        *("0.6 : 1.0 GB = 0.60", "≤ 0.5 ✗", "100 : 25"),
    ]


def test_what_is_missed_is_marked(stored) -> None:
    (found,) = cells(stored(ours=2.0))
    assert found[6] == "≥ 2.5x ✗"


def test_a_void_row_gives_the_figures_and_no_ratio(stored) -> None:
    (found,) = cells(stored(first_loss=1.6))
    assert found[4] == "void: first_loss 1.5 there, 1.6 here"
    assert set(found[5:]) == {"–"}


def test_a_row_whose_pairs_were_all_discarded_has_no_ratio(stored) -> None:
    (found,) = cells(stored(drifts=(0.4, 0.5)))
    assert found[3] == "0 (of 2)"
    assert set(found[4:]) == {"–"}


def test_rows_stand_in_the_order_in_which_they_are_declared(stored) -> None:
    stored("dpo", "cached")
    stored("sft", "default")
    found = cells(stored("sft", "tuned"))
    assert [cell[0] for cell in found] == ["sft", "sft", "dpo"]
    assert [cell[2][:7] for cell in found] == ["float32", "its def", "float32"]
    assert found[1][6] == found[1][8] == ""  # nothing is asked of a row with defaults


def test_without_results_it_says_so(tmp_path) -> None:
    assert table(tmp_path) == NOTHING


def test_only_what_stands_between_the_marks_is_written() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_table(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_table(once, "new") == once
    with pytest.raises(ValueError, match="no line"):
        with_table("before and after", "new")


def test_every_row_names_a_stage_and_a_script_that_is_there() -> None:
    assert {row.stage for row in ROWS} == set(STAGES)
    assert len({(row.stage, row.peer_name, row.name) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.settings({})["stage"] == row.stage
        assert (command.ROOT / "benchmarks" / "compare" / "sides" / row.ours.script).is_file()


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in chosen("dpo", "trl")] == ["uncached", "cached", "default"]
    assert [row.name for row in chosen("dpo", "trl", ("cached",))] == ["cached"]
    with pytest.raises(ValueError, match="there are tuned, default"):
        chosen("sft", "trl", ("fast",))
    with pytest.raises(ValueError, match="is compared with llamafactory, not with trl"):
        chosen("ppo", "trl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--stage and --peer are needed"),
        (["--stage", "ppo", "--peer", "trl"], "not with trl"),
        (["--stage", "sft", "--peer", "trl", "--set", "steps"], "KEY=VALUE"),
        (["--stage", "sft", "--peer", "trl", "--data", "nowhere"], "no dataset_info.json"),
    ],
)
def test_arguments_that_cannot_be_used_end_with_a_sentence(arguments, said, capsys) -> None:
    assert command.main(arguments) == 2
    assert said in capsys.readouterr().err
