"""Files as they were published, read without a change; skipped where they do not lie beside the repository."""

import json
import shutil

import pytest

from posttrain.config import DataConfig
from posttrain.data.datasets import read_examples
from posttrain.data.encode import Report
from posttrain.data.formats import ChatExample, PairExample, PromptExample, TextExample, UnpairedExample
from posttrain.data.sources import read_rows
from posttrain.errors import UserError

from .conftest import SHARED

MAPPED = {
    "csl_title_zh/test.json": {"prompt": "content", "response": "title"},
    "spider_dev/dev.json": {"prompt": "question", "response": "query"},
}


def published(name):
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"no {name} beside the repository")
    return path


def examples(path, stage, tmp_path, columns=None, **options):
    report = Report()
    name = str(path)
    if columns:
        (tmp_path / "dataset_info.json").write_text(json.dumps({"it": {"file_name": str(path), "columns": columns}}))
        name, options = "it", {**options, "dataset_dir": str(tmp_path)}
    return read_examples((name,), DataConfig(dataset=(name,), **options), stage, report), report


@pytest.mark.parametrize(
    ("name", "stage", "kind", "count"),
    [
        ("llamafactory-demo/alpaca_en_demo.json", "sft", ChatExample, 999),
        ("llamafactory-demo/alpaca_zh_demo.json", "sft", ChatExample, 1000),
        ("llamafactory-demo/identity.json", "sft", ChatExample, 91),
        ("llamafactory-demo/dpo_en_demo.json", "rm", PairExample, 300),
        ("llamafactory-demo/dpo_zh_demo.json", "dpo", PairExample, 300),
        ("llamafactory-demo/dpo_zh_demo.json", "ppo", PromptExample, 300),
        ("llamafactory-demo/wiki_demo.txt", "pt", TextExample, 30),
        ("gsm8k/test.jsonl", "sft", ChatExample, 1319),
        ("gsm8k/test.jsonl", "grpo", PromptExample, 1319),
        ("hh_rlhf_harmless_test/test.jsonl.gz", "rm", PairExample, 2307),
        ("csl_title_zh/test.json", "sft", ChatExample, None),
        ("spider_dev/dev.json", "sft", ChatExample, 1034),
    ],
)
def test_a_published_file_is_read(tmp_path, name, stage, kind, count):
    path = published(name)
    found, report = examples(path, stage, tmp_path, MAPPED.get(name))
    assert all(isinstance(example, kind) for example in found)
    assert report.rows_read == len(read_rows(path))
    assert len(found) + sum(report.dropped.values()) == report.rows_read
    assert len(found) == (report.rows_read if count is None else count)


def test_llama_factorys_kto_rows_carry_their_labels(tmp_path):
    path = published("llamafactory-demo/kto_en_demo.json")
    info = json.loads(published("llamafactory-demo/dataset_info.json").read_text(encoding="utf-8"))
    name = next(name for name, entry in info.items() if entry.get("file_name") == path.name)
    options = {"dataset_dir": str(path.parent)}
    found = read_examples((name,), DataConfig(dataset=(name,), **options), "kto", Report())
    labels = [row["label"] for row in read_rows(path)]
    assert all(isinstance(example, UnpairedExample) for example in found)
    assert [example.desirable for example in found] == labels
    assert {True, False} == set(labels)


def test_names_in_braces_are_left_as_they_are(tmp_path):
    """LLaMA-Factory 0.9.5 does not replace them either: its users do, in the file."""
    found, _ = examples(published("llamafactory-demo/identity.json"), "sft", tmp_path)
    assert sum("{{name}}" in example.messages[-1].content for example in found) > 50


def test_the_question_of_a_row_with_sql_is_its_question(tmp_path):
    found, _ = examples(published("spider_dev/dev.json"), "grpo", tmp_path)
    assert found[0].prompt[-1].content == "How many singers do we have?"
    assert found[0].extras["query"] == "SELECT count(*) FROM singer"


def test_a_jsonl_name_that_holds_a_list_is_read_as_the_list(tmp_path):
    path = published("llamafactory-demo/dpo_zh_demo.json")
    copy = shutil.copy(path, tmp_path / "train.jsonl")
    assert read_rows(copy) == read_rows(path)


def test_nested_tables_of_questions_are_refused_with_what_they_are(tmp_path):
    with pytest.raises(UserError, match=r"cmrc2018_dev\.json: expected a list of rows.*object with keys version, data"):
        examples(published("cmrc2018/cmrc2018_dev.json"), "sft", tmp_path)


def test_pairs_of_whole_conversations_beside_one_of_them(tmp_path):
    """As the binarised UltraFeedback has them: prompt, chosen, rejected and messages, which is chosen once more."""
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}] for answer in ("a", "b")]
    row = {"prompt": "q", "prompt_id": "1", "chosen": turns[0], "rejected": turns[1], "messages": turns[0]}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row, {**row, "score_chosen": 8.0}]))
    found, _ = examples(path, "rm", tmp_path)
    assert [(pair.prompt[-1].content, pair.chosen, pair.rejected) for pair in found] == [("q", "a", "b")] * 2
    del row["prompt"]
    path.write_text(json.dumps([row]))
    found, _ = examples(path, "rm", tmp_path)
    assert (found[0].prompt[-1].content, found[0].chosen) == ("q", "a")
