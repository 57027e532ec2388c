import json

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
    assert any("read 6 rows" in sentence for sentence in said)
    assert {call[0] for call in shown} >= {"load the model", "generate ppo", "run the SQL of base"}


def test_a_single_model_has_its_metrics_under_the_usual_names(eval_config, trained, tmp_path):
    config = eval_config(adapter_name_or_path=str(trained / "sft"), stage="sft", output_dir=str(tmp_path))
    results = evaluate(config)
    assert results["task"] == "loss"
    assert results["eval_loss"] == results["variants"]["model"]["loss"]
    assert {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"} <= results.keys()
    assert not (tmp_path / "predictions.jsonl").exists()


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


def test_no_rows_is_one_clear_message(eval_config):
    with pytest.raises(UserError, match="`eval_dataset` is missing"):
        evaluate(eval_config(eval_dataset=None))


def test_an_output_folder_that_cannot_be_is_refused_before_the_model_is_loaded(eval_config, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    shown = []
    with pytest.raises(UserError, match="cannot be written to"):
        evaluate(eval_config(output_dir=str(tmp_path / "file" / "out")), progress=lambda *call: shown.append(call))
    assert shown == []
