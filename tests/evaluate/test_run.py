import json
from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.evaluate.run import evaluate


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sql_of_several_variants(eval_config, sql_data, trained, ppo_folder, tmp_path):
    config = eval_config(
        task="sql",
        dataset_dir=str(sql_data),
        eval_dataset="text2sql_heldout",
        variants=["base", f"sft={trained / 'sft'}", f"ppo={ppo_folder}"],
        reward_model=str(trained / "rm"),
        max_new_tokens=6,
        output_dir=str(tmp_path / "out"),
    )
    said, shown = [], []
    results = evaluate(config, said.append, lambda *call: shown.append(call))
    written = json.loads((tmp_path / "out" / "eval_results.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(results)) == written
    assert list(written["variants"]) == ["base", "sft", "ppo"]
    assert written["eval_num_rows"] == 6
    assert written["eval_samples_per_second"] == pytest.approx(18 / written["eval_runtime"])
    assert written["eval_steps_per_second"] == pytest.approx(3 / written["eval_runtime"])
    assert all("reward" in metrics for metrics in written["variants"].values())
    assert [name for name, metrics in written["variants"].items() if "kl" in metrics] == ["ppo"]
    assert [item["of"] for item in written["differences"]] == ["sft", "sft", "ppo", "ppo"]
    records = lines(tmp_path / "out" / "predictions.jsonl")
    assert [(row["variant"], row["index"]) for row in records[5:7]] == [("base", 5), ("sft", 0)]
    assert records[0]["id"] == records[6]["id"] != records[1]["id"]
    assert written["decoding"]["do_sample"] is False
    assert written["decoding"]["max_new_tokens"] == 6
    assert any("read 6 rows" in sentence for sentence in said)
    assert {call[0] for call in shown} >= {"load the model", "generate ppo", "run the SQL of base"}


def test_a_single_model_has_its_metrics_under_the_usual_names(eval_config, trained, tmp_path):
    config = eval_config(adapter_name_or_path=str(trained / "sft"), stage="sft", output_dir=str(tmp_path))
    results = evaluate(config)
    assert results["task"] == "loss"
    assert results["eval_loss"] == results["variants"]["model"]["loss"]
    assert {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"} <= results.keys()
    low, high = results["variants"]["model"]["loss_interval"]
    assert low < results["eval_loss"] < high
    assert 0 <= results["eval_token_accuracy"] <= 1
    assert (results["seed"], results["decoding"], results["eval_num_rows"]) == (1, None, 12)
    records = lines(tmp_path / "predictions.jsonl")
    loss = sum(row["loss_sum"] for row in records) / sum(row["num_tokens"] for row in records)
    assert loss == pytest.approx(results["eval_loss"])


def test_items_have_the_same_names_in_every_run(eval_config, trained, tiny_data, tmp_path):
    path, (first, second) = tmp_path / "rows.json", (tmp_path / "one", tmp_path / "two")
    rows = json.loads((tiny_data / "chat.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(rows[::-1]), encoding="utf-8")
    one = evaluate(eval_config(stage="sft", output_dir=str(first)))
    two = evaluate(
        eval_config(stage="sft", variants=[f"sft={trained / 'sft'}"], eval_dataset=str(path), output_dir=str(second))
    )
    assert one["items"] == two["items"]
    names = [[row["id"] for row in lines(folder / "predictions.jsonl")] for folder in (first, second)]
    assert names[0] == names[1][::-1]
    other = evaluate(eval_config(stage="sft", eval_dataset=str(path), max_samples=5))
    assert other["items"] != one["items"]


def test_losses_say_of_which_tokens_they_are(eval_config):
    settings = evaluate(eval_config(stage="sft"))["settings"]
    assert list(settings) == ["tokenizer"]
    assert len(settings["tokenizer"]) == 12


def test_variants_are_compared_item_by_item(eval_config, trained):
    results = evaluate(eval_config(stage="sft", variants=["base", f"sft={trained / 'sft'}"]))
    found = {item["metric"]: item for item in results["differences"]}
    assert set(found) == {"loss", "perplexity", "token_accuracy"}
    loss = found["loss"]
    base, sft = (results["variants"][name]["loss"] for name in ("base", "sft"))
    assert (loss["of"], loss["minus"], loss["difference"]) == ("sft", "base", pytest.approx(sft - base))
    assert loss["interval"][1] < 0
    assert loss["p"] < 0.01


def test_training_and_evaluation_agree(tiny_config, tiny_data, eval_config, tmp_path):
    from posttrain.train.run import train

    chat = str(tiny_data / "chat.json")
    trained = train(tiny_config("sft", tmp_path / "sft", eval_dataset=chat, learning_rate=1e-2))
    results = evaluate(eval_config(adapter_name_or_path=str(tmp_path / "sft"), eval_dataset=chat))
    assert results["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-4)
    trained = train(tiny_config("rm", tmp_path / "rm", eval_dataset=str(tiny_data / "pairs.json"), learning_rate=1e-2))
    pairs = str(tiny_data / "pairs.json")
    results = evaluate(eval_config(reward_model=str(tmp_path / "rm"), eval_dataset=pairs, task="reward"))
    for name in ("eval_loss", "eval_accuracy", "eval_margin"):
        assert results[name] == pytest.approx(trained[name], abs=1e-3)


def test_perplexity_reads_documents_unless_a_stage_is_named(eval_config, tiny_data):
    documents = evaluate(eval_config(task="perplexity", eval_dataset=str(tiny_data / "text.jsonl")))
    answers = evaluate(eval_config(task="perplexity", stage="sft"))
    assert documents["eval_num_tokens"] > answers["eval_num_tokens"]


def test_the_scores_of_pairs_are_written(eval_config, tiny_data, trained, tmp_path):
    config = eval_config(
        task="reward",
        adapter_name_or_path=str(trained / "rm"),
        eval_dataset=str(tiny_data / "pairs.json"),
        output_dir=str(tmp_path),
    )
    results = evaluate(config)
    records = lines(tmp_path / "predictions.jsonl")
    right = sum(row["chosen_score"] > row["rejected_score"] for row in records)
    assert results["eval_accuracy"] == right / len(records)
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_no_rows_is_one_clear_message(eval_config):
    with pytest.raises(UserError, match="`eval_dataset` is missing"):
        evaluate(eval_config(eval_dataset=None))


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_without_an_eval_dataset_the_rows_are_those_that_training_held_out(
    stage, tiny_config, tiny_data, eval_config, tmp_path
):
    from posttrain.train.run import train

    keys = {"val_size": 0.3, "seed": 8, "learning_rate": 2e-2}
    trained = train(tiny_config(stage, tmp_path / "run", **keys, num_train_epochs=3, save_strategy="no"))
    folder = "reward_model" if stage == "rm" else "adapter_name_or_path"
    data = str(tiny_data / {"sft": "chat.json", "rm": "pairs.json"}[stage])
    common = {"stage": stage, "dataset": data, "eval_dataset": None, "cutoff_len": 64, folder: str(tmp_path / "run")}
    said = []
    results = evaluate(eval_config(**common, **keys), said.append)
    assert results["eval_num_rows"] == 4
    assert results["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-4)
    assert any("`val_size: 0.3` and `seed: 8`" in sentence for sentence in said)
    others = evaluate(eval_config(**common, **{**keys, "seed": 9}))
    assert others["eval_loss"] != pytest.approx(trained["eval_loss"], abs=1e-4)
    whole = evaluate(eval_config(**{**common, "eval_dataset": data}, **keys))
    assert whole["eval_num_rows"] == 12


def test_rows_read_in_another_way_than_in_training_are_the_held_out_ones_too(eval_config, tiny_llama, tmp_path):
    """Rows without an answer are no use to stage sft, but questions like any other to an evaluation of SQL."""
    from posttrain.data.datasets import load_dataset
    from posttrain.evaluate.rows import read_rows
    from posttrain.models.load import load_tokenizer

    answers = ["a", "", "b", "", "", "c", "d", "", "e", "f"]
    rows = [{"instruction": f"question {i}", "input": "", "output": text} for i, text in enumerate(answers)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    path = str(tmp_path / "rows.json")
    config = eval_config(task="sql", stage="sft", dataset=path, eval_dataset=None, val_size=3, seed=2)
    tokenizer = load_tokenizer(tiny_llama)
    validation = load_dataset(config.data, tokenizer, "sft", seed=2).validation
    prompts, _, report = read_rows(config, tokenizer, "ppo")
    assert (report.rows_read, report.kept) == (3, 3)
    for prompt, row in zip(prompts, validation, strict=True):
        assert row.input_ids[: len(prompt.input_ids)] == prompt.input_ids


def refused(config):
    """The message of an evaluation that ends before the model is loaded."""
    shown = []
    with pytest.raises(UserError) as caught:
        evaluate(config, progress=lambda *call: shown.append(call))
    assert shown == []
    return str(caught.value)


def test_an_output_folder_that_cannot_be_is_refused_before_the_model_is_loaded(eval_config, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot be written to" in refused(eval_config(output_dir=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize("name", ["eval_results.json", "predictions.jsonl"])
def test_a_folder_in_the_place_of_the_results_is_refused_before_the_model_is_loaded(eval_config, tmp_path, name):
    (tmp_path / name).mkdir()
    assert f"holds a folder called {name}" in refused(eval_config(output_dir=str(tmp_path)))


def test_a_folder_without_leave_to_write_is_refused_before_the_model_is_loaded(eval_config, tmp_path, monkeypatch):
    def forbidden(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", forbidden)
    message = refused(eval_config(output_dir=str(tmp_path)))
    assert message == f"output_dir {tmp_path} cannot be written to: Permission denied"


def test_trying_the_folder_out_leaves_nothing_behind(eval_config, tmp_path):
    evaluate(eval_config(output_dir=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval_results.json", "predictions.jsonl"]


def test_rows_held_out_of_a_stream_are_not_guessed(eval_config, tiny_data):
    path = str(tiny_data / "chat.json")
    config = eval_config(task="loss", stage="sft", dataset=path, eval_dataset=None, val_size=3, streaming=True)
    with pytest.raises(UserError, match=r"`val_size` with `streaming` .* name the rows to measure in `eval_dataset`"):
        evaluate(config)
