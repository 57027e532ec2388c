import json

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.evaluate.run import evaluate

pytest.importorskip("sacrebleu")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def written(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_answers_of_models_are_scored_against_the_data(eval_config, trained, fluent, tmp_path):
    config = eval_config(
        task="generation",
        variants=["base", f"sft={fluent}"],
        reward_model=str(trained / "rm"),
        max_new_tokens=6,
        output_dir=str(tmp_path / "out"),
    )
    said = []
    results = evaluate(config, said.append)
    base, sft = results["variants"]["base"], results["variants"]["sft"]
    assert sft["chrf"] > base["chrf"] + 20
    assert sft["rouge1"] > base["rouge1"] + 20
    assert base["chrf_interval"][0] <= base["chrf"] <= base["chrf_interval"][1]
    assert {"bleu", "rouge2", "rougeL", "response_length", "ended_share", "reward"} <= set(sft)
    assert results["decoding"]["do_sample"] is False
    assert results["settings"]["words"] == "13a"
    assert results["settings"]["bleu"].startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    records = lines(tmp_path / "out" / "predictions.jsonl")
    assert {"id", "prompt", "reference", "completion", "rouge1", "bleu_counts"} <= set(records[0])
    differences = {each["metric"]: each for each in results["differences"]}
    assert differences["chrf"]["interval"][0] > 0
    assert any("metric_tokenizer: 13a" in sentence for sentence in said)


def test_files_of_predictions_need_no_model_and_give_the_same(eval_config, fluent, tmp_path):
    keys = {"task": "generation", "max_new_tokens": 6}
    asked = evaluate(eval_config(**keys, variants=["base", f"sft={fluent}"], output_dir=str(tmp_path / "asked")))
    path = tmp_path / "asked" / "predictions.jsonl"
    config = load_config(
        {**keys, "predictions": [f"base={path}", f"sft={path}"], "output_dir": str(tmp_path / "filed"), "seed": 1},
        command="eval",
    )
    filed = evaluate(config)
    assert filed["items"] == asked["items"]
    assert filed["decoding"] is None
    for name in ("base", "sft"):
        for figure in ("bleu", "chrf", "rouge1", "rougeL"):
            assert filed["variants"][name][figure] == pytest.approx(asked["variants"][name][figure])
            interval = asked["variants"][name][f"{figure}_interval"]
            assert filed["variants"][name][f"{figure}_interval"] == pytest.approx(interval)


def test_what_generate_wrote_is_scored_beside_the_data(eval_config, tiny_llama, tiny_data, fluent, tmp_path):
    from posttrain.serve.generate import generate

    chat = str(tiny_data / "chat.json")
    common = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(fluent), "max_new_tokens": 6}
    generate(
        load_config(
            {**common, "dataset": chat, "do_sample": False, "output_file": str(tmp_path / "p.jsonl")},
            command="generate",
        )
    )
    asked = evaluate(eval_config(task="match", adapter_name_or_path=str(fluent), max_new_tokens=6))
    for keys in ({}, {"eval_dataset": chat}):
        config = load_config({"task": "match", "predictions": str(tmp_path / "p.jsonl"), **keys}, command="eval")
        filed = evaluate(config)
        assert filed["items"] == asked["items"]
        assert filed["variants"]["p"]["accuracy"] == asked["variants"]["model"]["accuracy"] > 0.5


def test_numbers_are_matched_with_an_interval(written):
    rows = [
        {"prompt": f"q{i}", "predict": f"so it is {i if i % 4 else i + 1}.", "label": f"... #### {i}"}
        for i in range(20)
    ]
    config = load_config(
        {"task": "match", "match": "number", "predictions": [f"m={written('m.jsonl', rows)}"]}, command="eval"
    )
    results = evaluate(config)
    found = results["variants"]["m"]
    assert (found["accuracy"], found["answered"]) == (0.75, 1.0)
    assert found["accuracy_interval"][0] < 0.75 < found["accuracy_interval"][1]
    assert results["settings"]["match"] == "number"
    assert results["eval_accuracy"] == 0.75


def test_chinese_is_seen_from_the_references(written):
    rows = [{"prompt": "问", "predict": "中国的首都是北京。", "label": "北京是中国的首都。"}]
    results = evaluate(
        load_config({"task": "generation", "predictions": str(written("z.jsonl", rows))}, command="eval")
    )
    assert results["settings"]["words"] == "zh"
    assert "jieba" in results["settings"]["rouge_words"]
    assert results["variants"]["z"]["rouge1"] == pytest.approx(100.0)


def test_half_characters_of_other_programs_are_kept(written, tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text('{"prompt": "q", "predict": "a\\ud83d 好", "label": "a"}\n', encoding="utf-8")
    keys = {"task": "match", "predictions": str(path), "output_dir": str(tmp_path / "out")}
    evaluate(load_config(keys, command="eval"))
    (record,) = lines(tmp_path / "out" / "predictions.jsonl")
    assert record["completion"] == "a\ud83d 好"


def test_a_row_without_a_reference_is_named(written):
    rows = [{"prompt": "a", "predict": "x", "label": "x"}, {"prompt": "b", "predict": "y"}]
    config = load_config({"task": "match", "predictions": str(written("m.jsonl", rows))}, command="eval")
    with pytest.raises(
        UserError, match=r"row 2 has no reference to compare with \(1 rows in all; columns: predict, pro"
    ):
        evaluate(config)
