import math
import subprocess
import sys

import pytest

from posttrain.train.plots import CHARTS, plot_run, smoothed
from posttrain.train.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "输出")


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_only_the_curves_in_the_log_are_drawn(run):
    for step in range(1, 40):
        run.append_jsonl("trainer_log.jsonl", {"current_steps": step, "loss": 1 / step, "reward_mean": 0.1 * step})
    run.append_jsonl("trainer_log.jsonl", {"current_steps": 40, "kl": None, "entropy": math.nan, "eval_loss": 0.5})
    names = [path.name for path in plot_run(run)]
    assert names == ["training_loss.png", "training_eval_loss.png", "training_reward.png"]
    for name in names:
        assert pixels(run.path / name).shape[:2] == (604, 1036)


def test_no_log_no_picture(run):
    assert plot_run(run) == []


def test_the_curve_is_in_the_picture_and_follows_the_values(run):
    for name, sign in (("up", 1.0), ("down", -1.0)):
        other = RunDirectory.create(run.path / name)
        for step in range(30):
            other.append_jsonl("trainer_log.jsonl", {"current_steps": step, "loss": sign * step})
        plot_run(other)

    def centre_of_ink(name, left, right):
        picture = pixels(run.path / name / "training_loss.png")
        height, width = picture.shape[:2]
        region = picture[int(height * 0.2) : int(height * 0.8), int(width * left) : int(width * right), :3]
        rows = (region[..., 2] - region[..., 0] > 0.3).nonzero()[0]
        return rows.mean() / region.shape[0]

    assert centre_of_ink("up", 0.3, 0.5) > centre_of_ink("up", 0.6, 0.8) + 0.2
    assert centre_of_ink("down", 0.3, 0.5) < centre_of_ink("down", 0.6, 0.8) - 0.2


def test_a_step_logged_twice_and_a_reward_with_its_spread_are_drawn(run):
    rows = [{"current_steps": step, "reward_mean": step, "reward_std": 1.0} for step in (1, 2, 2, 3)]
    run.append_jsonl("trainer_log.jsonl", *rows)
    assert [path.name for path in plot_run(run)] == ["training_reward.png"]


def test_smoothing_by_hand():
    # Two values, so that β = 1/2: (4 + 1/2) / (3/2) = 3, then (4/2 + 1) / (3/2) = 2.
    assert smoothed([4.0, 1.0]) == [3.0, 2.0]
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([]) == []


def test_smoothing_does_not_lag_behind_a_straight_line():
    line = [float(step) for step in range(200)]
    assert smoothed(line)[80:120] == pytest.approx(line[80:120], abs=0.1)


def test_chart_names_are_unique():
    assert len({chart.name for chart in CHARTS}) == len(CHARTS)


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never():
    code = "import posttrain.train.plots, sys; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
