import json
import struct
from pathlib import Path

import pytest

from posttrain.config import load_pipeline
from posttrain.pipeline.report import comparison_table, cost_table, differences, training_table, write_report
from posttrain.pipeline.results import read_results
from posttrain.pipeline.state import Record, State

PIPELINE = """
name: trial
output_dir: OUT
defaults: {model_name_or_path: tiny}
stages:
  - {name: pretrain, stage: pt, dataset: a}
  - {name: sft, stage: sft, dataset: b}
  - {name: reward, stage: rm, dataset: c}
  - {name: ppo, stage: ppo, dataset: d, reward_model: "${reward.output_dir}"}
  - {name: evaluate, stage: evaluate, task: sql, eval_dataset: e}
"""


def variant(accuracy, **more):
    part = {"num_questions": 12, "execution_accuracy": accuracy, "interval": [accuracy / 2, (1 + accuracy) / 2]}
    return {
        "num_questions": 12,
        "execution_accuracy": accuracy,
        "execution_accuracy_interval": [accuracy / 2, (1 + accuracy) / 2],
        "valid_rate": 0.75,
        "exact_match": 0.25,
        "reward": accuracy * 2,
        "reward_interval": [accuracy, accuracy * 3],
        "response_length": 20.0,
        "ended_share": 1.0,
        "groups": {"language": {"zh": part}},
        **more,
    }


def difference(of, minus, value, interval, metric="execution_accuracy"):
    return {"metric": metric, "of": of, "minus": minus, "difference": value, "interval": interval}


SQL = {
    "task": "sql",
    "eval_num_rows": 12,
    "confidence": 0.95,
    "variants": {"base": variant(0.0), "sft": variant(0.5), "ppo": variant(0.25, kl=1.5, kl_interval=[1.0, 2.0])},
    "differences": [
        difference("sft", "base", 0.5, [0.25, 0.75]),
        difference("ppo", "sft", -0.25, [-0.5, 0.0]),
        difference("ppo", "sft", -0.4, [-0.6, -0.2], metric="reward"),
    ],
}
PT = {"eval_perplexity_before": 20.0, "eval_perplexity": 5.0, "stopped_at_step": 3}
RM = {"eval_accuracy": 0.9, "eval_runtime": 2.0, "eval_samples_per_second": 20.0, "stopped_at_step": 3}
PPO = {"eval_reward_before": 0.5, "eval_reward": 1.25}


def prediction(name, index):
    return {
        "index": index,
        "variant": name,
        "prompt": f"题目 {index}\nCREATE TABLE t (a INT);",
        "language": "zh",
        "gold": f"SELECT {index}",
        "completion": f"SELECT {index} -- {name} | ```",
        "correct": name == "sft" and index == 0,
        "error_class": None if index == 0 else "no_such_table",
    }


def write(folder, results, log=(), predictions=(), name="all_results.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(results), encoding="utf-8")
    for file, rows in (("trainer_log.jsonl", log), ("predictions.jsonl", predictions)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / file).write_text(text, encoding="utf-8")


@pytest.fixture
def pipeline(tmp_path):
    path, out = tmp_path / "pipeline.yaml", tmp_path / "out"
    path.write_text(PIPELINE.replace("OUT", out.as_posix()), encoding="utf-8")
    losses = [{"current_steps": i, "loss": 3.0 / i} for i in range(1, 4)]
    rewards = [
        {"current_steps": i, "reward_mean": i, "reward_std": 0.5, "kl": i, "entropy": 1 / i, "response_length": 20}
        for i in range(1, 15)
    ]
    write(out / "pretrain", PT, [*losses, {"current_steps": 3, "eval_loss": 1.2}])
    write(out / "sft", {"stopped_at_step": 3}, losses)
    write(out / "reward", RM, losses)
    write(out / "ppo", PPO, rewards)
    rows = [prediction(name, index) for name in SQL["variants"] for index in range(12)]
    write(out / "evaluate", SQL, predictions=rows, name="eval_results.json")
    return load_pipeline(path)


@pytest.fixture
def state(pipeline):
    state = State(Path(pipeline.output_dir))
    for number, stage in enumerate(pipeline.stages, start=1):
        record = Record(digest="d", finished=True, seconds=60.0 * number, peak_memory_bytes=number * 10**9)
        state.put(stage.name, record)
    return state


def written(pipeline, state):
    said = []
    return write_report(pipeline, state, said.append).read_text(encoding="utf-8"), "\n".join(said)


def test_the_report_holds_every_part(pipeline, state):
    text, said = written(pipeline, state)
    assert text.startswith("# trial\n")
    parts = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(parts) == 5
    for cell in ("25.0 % [12.5, 62.5]", "1.50 [1.00, 2.00]", "90.0 % [76.9, 96.0] of 40", "20.00 | 5.00"):
        assert cell in text
        assert all(piece in said for piece in cell.split(" | "))
    assert "language: zh" in text


def test_every_picture_is_there_and_is_one(pipeline, state):
    text, _ = written(pipeline, state)
    names = [line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert names == ["report_accuracy.png", "report_training.png", "report_ppo.png"]
    for name in names:
        data = (Path(pipeline.output_dir) / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(width, height) > 300


def test_ten_questions_side_by_side_at_even_distances(pipeline, state):
    text, _ = written(pipeline, state)
    examples = text.split("## Completions side by side")[1]
    titles = [line for line in examples.splitlines() if line.startswith("### ")]
    assert len(titles) == 10
    assert "题目 0" in examples
    assert "题目 10" in examples
    assert "题目 5" not in examples
    first = [line for line in examples.splitlines() if line.startswith("| ")][2:6]
    assert first[0] == "| reference |  | `SELECT 0` |"
    assert first[1] == "| base | ✗ wrong result | ```` SELECT 0 -- base \\| ``` ```` |"
    assert first[2].startswith("| SFT | ✓ correct |")


def test_differences_say_when_they_show_nothing():
    better, unclear, worse = differences(SQL)
    assert better == ("SFT − base, execution accuracy: +50.0 points [+25.0, +75.0]; the interval lies above 0.")
    assert "includes 0" in unclear
    assert worse.startswith("PPO − SFT, reward: -0.40")
    assert "got worse" in worse


def test_one_column_for_each_variant():
    table = comparison_table(SQL)
    assert table.header == ("", "base", "SFT", "PPO")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["KL to its reference"] == ("–", "–", "1.50 [1.00, 2.00]")
    assert rows["valid SQL"] == ("75.0 %",) * 3
    plain = {key: value for key, value in variant(0.5).items() if not key.startswith("reward")}
    alone = comparison_table({**SQL, "variants": {"model": plain}})
    assert not any(row[0].startswith(("reward", "KL")) for row in alone.rows)


def test_the_cost_adds_up(pipeline, state):
    rows = cost_table(read_results(pipeline, state)).rows
    assert rows[0] == ("pretrain", "3", "0:01:00", "1.00 GB")
    assert rows[-1] == ("all", "", "0:15:00", "5.00 GB")


def test_each_phase_stands_against_the_least(pipeline, state):
    decode = {"decode_tokens_per_second": 1234.4, "decode_flops_of_ideal": 1.014, "decode_padding_ratio": 1.0}
    write(Path(pipeline.output_dir) / "ppo", {**PPO, **decode, "decode_x_of_limit": 1.5, "train_flops_of_ideal": 1.25})
    text, said = written(pipeline, state)
    assert "| ppo | decode | 1234 | 1.01 | 1.00 | 1.50 |" in text
    assert "| ppo | train | – | 1.25 | – | – |" in text
    assert "time / least" in said


def test_other_evaluations_are_listed(pipeline, state):
    results = {"task": "reward", "variants": {"rm": {"accuracy": 0.875}}}
    write(Path(pipeline.output_dir) / "evaluate", results, name="eval_results.json")
    rows = training_table(read_results(pipeline, state)).rows
    assert ("evaluate: reward model", "accuracy", "–", "0.875") in rows


def test_alarms_are_listed(pipeline, state):
    raised = {"no_eos": 14, "length_drift": 12}
    write(Path(pipeline.output_dir) / "ppo", {**PPO, "alarms": raised, "rolled_back_to": 10})
    text, said = written(pipeline, state)
    sentence = "ppo: length_drift from step 12, no_eos from step 14; it went back to step 10 and ended there."
    assert f"## Alarms\n\n- {sentence}" in text
    assert f"alarms: {sentence}" in said


@pytest.mark.parametrize("alarms", [{}, None, ["kl"]])
def test_without_alarms_nothing_is_said_about_them(pipeline, state, alarms):
    write(Path(pipeline.output_dir) / "ppo", {**PPO, "alarms": alarms})
    text, said = written(pipeline, state)
    assert "## Alarms" not in text
    assert "alarms: " not in said


def test_what_was_not_done_is_left_out(pipeline, tmp_path):
    import shutil

    for name in ("pretrain", "reward", "ppo", "evaluate"):
        shutil.rmtree(Path(pipeline.output_dir) / name)
    empty = State(Path(pipeline.output_dir))
    text, _ = written(pipeline, empty)
    assert "What the models can do" not in text
    assert "side by side" not in text
    assert "report_training.png" in text
    assert "report_ppo.png" not in text


def test_damaged_results_count_as_none(pipeline, state):
    folder = Path(pipeline.output_dir)
    (folder / "evaluate" / "eval_results.json").write_text("{", encoding="utf-8")
    (folder / "reward" / "all_results.json").write_text("[1]", encoding="utf-8")
    text, _ = written(pipeline, state)
    assert "What the models can do" not in text
    assert "pairs ranked" not in text
