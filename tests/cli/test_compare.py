"""``posttrain compare`` from the command line, on evaluations of a tiny model."""

import json

import pytest

from posttrain.cli import main


@pytest.fixture
def evaluated(work, capsys):
    """Evaluate the tiny model into a folder; keywords are keys of the file."""

    def run(folder, **keys):
        config = work(f"{folder}.yaml", output_dir=folder, dataset=None, eval_dataset="data/sft.json", **keys)
        assert main(["eval", config]) == 0
        capsys.readouterr()
        return folder

    return run


def test_two_evaluations_become_tables_files_and_a_picture(work, evaluated, tmp_path, capsys):
    assert main(["train", work(output_dir="run", max_steps=8, learning_rate=0.02)]) == 0
    evaluated("base")
    evaluated("tuned", adapter_name_or_path="run")
    assert main(["compare", "base", "tuned"]) == 0
    output = capsys.readouterr()
    assert "loss on 8 items [95 % interval]" in output.out
    assert "loss: tuned - base" in output.out
    assert "significant, tuned is better" in output.out
    assert "corrected for 2 comparisons, those of this table" in output.out
    assert "8 items are few" in output.out
    assert "wrote" in output.err
    folder = tmp_path / "comparison"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| loss: tuned - base |" in text
    assert "![The figures with their intervals](comparison.png)" in text
    plain = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert plain["differences"][0]["is_significant"] is True


def test_json_is_all_that_is_printed(evaluated, tmp_path, capsys):
    evaluated("one")
    evaluated("two")
    assert main(["compare", "one", "two", "--json", "--output", "out", "--seed", "7"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["seed"], plain["correction"], list(plain["systems"])) == (7, "holm", ["one", "two"])
    assert (tmp_path / "out" / "comparison.png").is_file()


def test_what_is_not_comparable_is_status_2_and_one_message(evaluated, capsys):
    evaluated("all")
    evaluated("some", max_samples=5)
    for arguments, message in (
        (["all", "some"], "measured different items"),
        (["all", "gone"], "there is no folder gone"),
        (["all", "some", "--confidence", "2"], "--confidence 2 must lie between"),
        (["all", "some", "--seed", "-1"], "--seed -1 must not be negative"),
    ):
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("posttrain: error: ")
        assert message in error
        assert "Traceback" not in error


def test_training_runs_have_curves(work, tmp_path, capsys):
    for name, rate in (("slow", 0.001), ("fast", 0.02)):
        assert (
            main(["train", work(f"{name}.yaml", output_dir=name, max_steps=3, learning_rate=rate, logging_steps=1)])
            == 0
        )
    capsys.readouterr()
    assert main(["compare", "slow", "fast"]) == 0
    output = capsys.readouterr().out
    assert "Training runs" in output
    assert "no difference is tested" in output
    assert (tmp_path / "comparison" / "comparison.png").read_bytes().startswith(b"\x89PNG")
