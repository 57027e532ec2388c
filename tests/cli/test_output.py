"""How numbers are printed, and how progress is shown."""

import sys

import pytest

from posttrain.cli.output import print_block, print_results, print_table, shown_value
from posttrain.cli.progress import ProgressLine


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("eval_runtime", 16.734, "0:00:16.73"),
        ("train_runtime", 3723.999, "1:02:04.00"),
        ("train_runtime", 100 * 3600 + 59.5, "100:00:59.50"),
        ("peak_memory_bytes", 612_000_000, "612 MB"),
        ("peak_memory_bytes", 18_250_000_000, "18.25 GB"),
        ("epoch", 3.0, "3.0"),
        ("eval_accuracy", 1.0, "1.0"),
        ("eval_loss", 0.123456, "0.1235"),
        ("eval_loss", 0.0000123456, "1.235e-05"),
        ("eval_loss", 0.0, "0.0"),
        ("eval_loss", float("nan"), "nan"),
        ("total_steps", 1200, "1200"),
        ("interval", [0.5, 0.75], "[0.5, 0.75]"),
        ("best", None, "None"),
    ],
)
def test_values_are_shown_as_readers_want_them(key, value, shown):
    assert shown_value(key, value) == shown


def test_a_block_is_sorted_and_aligned(capsys):
    print_block("eval metrics", {"eval_runtime": 16.73, "epoch": 3.0})
    assert capsys.readouterr().out == (
        "***** eval metrics *****\n  epoch        =        3.0\n  eval_runtime = 0:00:16.73\n"
    )
    print_block("nothing", {})
    assert capsys.readouterr().out == ""


def test_results_fall_into_two_blocks(capsys):
    print_results({"epoch": 1.0, "train_loss": 2.0, "eval_loss_before": 3.0, "eval_loss": 1.5})
    training, evaluation = capsys.readouterr().out.split("***** eval metrics *****")
    assert "train_loss" in training
    assert "eval_loss_before" in training
    assert "eval_loss " in evaluation
    assert "epoch" in evaluation
    assert "before" not in evaluation


def test_a_table_has_a_column_for_each_variant(capsys):
    print_table({"sft": {"loss": 1.5, "kinds": {"a": 1}}, "ppo": {"loss": 1.25, "reward": 2.0}})
    assert capsys.readouterr().out == "        sft   ppo\nloss    1.5  1.25\nreward        2.0\n"
    print_table({})
    assert capsys.readouterr().out == ""


def test_progress_in_a_file_is_a_line_now_and_then(capsys):
    now = [0.0]
    with ProgressLine(clock=lambda: now[0]) as progress:
        for done, now[0] in ((0, 0.0), (1, 1.0), (2, 11.0), (3, 12.0)):
            progress("generate", done, 4)
        progress("score", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "posttrain: generate: 0 of 4",
        "posttrain: generate: 2 of 4",
        "posttrain: generate: 3 of 4",
        "posttrain: score",
    ]


def test_something_quick_is_shown_with_its_end(capsys):
    with ProgressLine(clock=lambda: 0.0) as progress:
        for done in range(1, 101):
            progress("run the SQL of base", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "posttrain: run the SQL of base: 1 of 100",
        "posttrain: run the SQL of base: 100 of 100",
    ]


def test_progress_on_a_terminal_is_one_line_rewritten(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressLine(clock=lambda: 0.0) as progress:
        for done in range(5):
            progress("generate", done, 4)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.count("\r") == 2  # the first, and the last
    assert output.endswith("4 of 4\x1b[K\n")
