import json

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.evaluate.frontier import checkpoint_folders
from posttrain.evaluate.run import evaluate


@pytest.fixture(scope="module")
def run_folder(tiny_config, trained, tmp_path_factory):
    """A short PPO run with three checkpoints that moves visibly."""
    from posttrain.train.run import train

    folder = tmp_path_factory.mktemp("frontier") / "ppo"
    train(
        tiny_config(
            "ppo",
            folder,
            adapter_name_or_path=str(trained / "sft"),
            reward_model=str(trained / "rm"),
            learning_rate=2e-3,
            max_steps=3,
            save_steps=1,
            per_device_train_batch_size=8,
        )
    )
    return folder


def config_of(eval_config, run_folder, trained, tiny_data, **keys):
    return eval_config(
        **{
            "task": "frontier",
            "eval_dataset": str(tiny_data / "prompts.json"),
            "checkpoints_of": str(run_folder),
            "reward_model": str(trained / "rm"),
            "max_new_tokens": 8,
            **keys,
        }
    )


def test_a_run_is_measured_along_its_way(eval_config, run_folder, trained, tiny_data, tmp_path):
    said = []
    config = config_of(eval_config, run_folder, trained, tiny_data, output_dir=str(tmp_path / "out"))
    results = evaluate(config, said.append)
    points = results["variants"]
    assert list(points) == ["reference", "checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [point["step"] for point in points.values()] == [0, 1, 2, 3]
    assert abs(points["reference"]["kl"]) < 1e-4
    assert points["checkpoint-3"]["kl"] > 0.05
    assert points["checkpoint-3"]["kl_interval"][0] <= points["checkpoint-3"]["kl"]
    assert all("reward_interval" in point for point in points.values())
    # drawn from the policy itself, as a KL asks for
    assert results["decoding"]["do_sample"] is True
    assert (results["decoding"]["temperature"], results["decoding"]["top_p"]) == (1.0, 1.0)
    assert [each["of"] for each in results["differences"]] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert all(each["minus"] == "reference" for each in results["differences"])
    picture = tmp_path / "out" / "frontier.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    records = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == 4 * 12
    record = json.loads(records[-1])
    assert {"id", "variant", "completion", "kl", "reward"} <= set(record)


def test_the_reference_is_what_the_run_started_from(eval_config, run_folder, trained, tiny_data):
    found = evaluate(config_of(eval_config, run_folder, trained, tiny_data, do_sample=False))
    plain = evaluate(
        eval_config(
            task="generation",
            eval_dataset=str(tiny_data / "chat.json"),
            adapter_name_or_path=str(trained / "sft"),
            reward_model=str(trained / "rm"),
            max_new_tokens=8,
        )
    )
    # the prompts of both files are the same
    assert found["variants"]["reference"]["reward"] == pytest.approx(plain["variants"]["model"]["reward"], abs=1e-4)


def test_greedy_completions_are_said_to_be_such(eval_config, run_folder, trained, tiny_data):
    said = []
    evaluate(config_of(eval_config, run_folder, trained, tiny_data, do_sample=False, max_checkpoints=1), said.append)
    assert any("completions are greedy" in sentence for sentence in said)


def test_the_reward_may_be_a_function(eval_config, run_folder, trained, tiny_data):
    config = config_of(
        eval_config, run_folder, trained, tiny_data, reward_model=None, reward_funcs="length:0-3", max_checkpoints=1
    )
    results = evaluate(config)
    assert list(results["variants"]) == ["reference", "checkpoint-3"]
    assert all(-1 <= point["reward"] <= 0 for point in results["variants"].values())


def checkpoints(tmp_path, *steps, adapter=True):
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
        if adapter:
            (tmp_path / f"checkpoint-{step}" / "adapter_config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def found_in(folder, **keys):
    values = {"model_name_or_path": "m", "task": "frontier", "reward_model": "r", "checkpoints_of": str(folder), **keys}
    return list(checkpoint_folders(load_config(values, command="eval")))


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path):
    folder = checkpoints(tmp_path, 20, 100, 3)
    assert found_in(folder) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize(("limit", "steps"), [(1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (12, list(range(10)))])
def test_of_many_some_are_taken_evenly_and_always_the_last(tmp_path, limit, steps):
    folder = checkpoints(tmp_path, *range(10))
    assert found_in(folder, max_checkpoints=limit) == [f"checkpoint-{step}" for step in steps]


def test_what_a_run_ended_with_is_the_last_point(tmp_path):
    folder = checkpoints(tmp_path, 2, 4)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "all_results.json").write_text('{"total_steps": 5}', encoding="utf-8")
    assert found_in(folder) == ["checkpoint-2", "checkpoint-4", "final"]
    assert found_in(folder, max_checkpoints=1) == ["final"]
    (folder / "all_results.json").write_text('{"total_steps": 4}', encoding="utf-8")
    assert found_in(folder) == ["checkpoint-2", "checkpoint-4"]


def test_a_folder_without_checkpoints_says_what_to_do(tmp_path):
    for folder, message in (
        (tmp_path / "gone", "there is no folder"),
        (tmp_path, "holds no checkpoint-N folder; train with save_steps"),
    ):
        with pytest.raises(UserError, match=message):
            found_in(folder)
    with pytest.raises(UserError, match="holds no adapter"):
        found_in(checkpoints(tmp_path, 1, adapter=False))


def test_checkpoints_of_a_stage_that_does_not_sample_are_refused(
    eval_config, tiny_config, trained, tiny_data, tmp_path
):
    from posttrain.train.run import train

    train(tiny_config("sft", tmp_path / "sft", max_steps=1, save_steps=1))
    with pytest.raises(UserError, match="was not written by a stage that samples"):
        evaluate(config_of(eval_config, tmp_path / "sft", trained, tiny_data))
