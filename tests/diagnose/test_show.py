"""Rows of every kind of stage as they are shown, against what a run is given."""

import pytest

from posttrain.config import load_config
from posttrain.data.datasets import load_dataset
from posttrain.diagnose.rows import sequences_of, shown_rows
from posttrain.diagnose.show import show
from posttrain.errors import UserError


@pytest.fixture
def configured(tiny_llama, tiny_data):
    """A configuration as ``posttrain data show`` loads it."""

    def make(stage, dataset, **keys):
        path = str(tiny_data / dataset) if "/" not in dataset and "\\" not in dataset else dataset
        values = {"model_name_or_path": str(tiny_llama), "stage": stage, "dataset": path, "cutoff_len": 64, **keys}
        return load_config(values, command="data")

    return make


@pytest.mark.parametrize(
    ("stage", "dataset", "keys"),
    [
        ("pt", "text.jsonl", {}),
        ("pt", "text.jsonl", {"packing": False}),
        ("pt", "text.jsonl", {"neat_packing": True}),
        ("sft", "chat.json", {}),
        ("sft", "chat.json", {"val_size": 4}),
        ("sft", "text.jsonl", {"text_column": "text"}),
        ("rm", "pairs.json", {}),
        ("dpo", "pairs.json", {}),
        ("kto", "judged.json", {}),
        ("kto", "pairs.json", {}),
        ("ppo", "prompts.json", {}),
    ],
)
def test_what_is_shown_is_what_trains(configured, tiny_tokenizer, stage, dataset, keys):
    config = configured(stage, dataset, **keys)
    given = load_dataset(config.data, tiny_tokenizer, stage, seed=config.train.seed)
    shown = shown_rows(config, tiny_tokenizer, 10**6)
    assert [s.row for row in shown.rows for s in row.sequences] == [
        s.row for row in given.train for s in sequences_of(row)
    ]
    few = shown_rows(config, tiny_tokenizer, 3, start=2)
    assert few.rows == shown.rows[1:4]


def test_each_row_says_where_it_stands(configured, tiny_tokenizer, tiny_data, write_rows):
    shown = shown_rows(configured("sft", "chat.json"), tiny_tokenizer, 2, start=3)
    assert [row.where for row in shown.rows] == [f"{tiny_data / 'chat.json'}, row {n}" for n in (3, 4)]
    texts = [{"text": "abc " * 12}, {"text": "x"}, {"text": "yes and no " * 30}]
    path = write_rows(texts, "docs.json")
    rows = shown_rows(configured("pt", path), tiny_tokenizer, 100).rows
    assert rows[0].where == f"{path}, row 1 to {path}, row 3"
    assert rows[0].notes == ("3 documents",)
    assert {row.where for row in rows[1:]} == {f"{path}, row 3"}


def test_held_out_rows_and_cut_rows(configured, tiny_tokenizer, write_rows):
    rows = [{"instruction": f"q{i}", "output": "a" * (300 if i == 5 else 3)} for i in range(8)]
    path = write_rows(rows)
    cut = shown_rows(configured("sft", path), tiny_tokenizer, 3, only_cut=True).rows
    assert [row.where for row in cut] == [f"{path}, row 6"]
    whole = shown_rows(configured("sft", path, cutoff_len=2048), tiny_tokenizer, 1, start=6).rows[0].sequences[0]
    assert sum(cut[0].sequences[0].cuts.values()) == len(whole.row) - 64
    assert whole.cuts == {}
    with pytest.raises(UserError, match="no row that cutoff_len cuts"):
        shown_rows(configured("sft", path, cutoff_len=2048), tiny_tokenizer, 3, only_cut=True)
    config = configured("sft", path, val_size=3)
    kept_out = shown_rows(config, tiny_tokenizer, 99, held_out=True).rows
    trained = shown_rows(config, tiny_tokenizer, 99).rows
    assert len(kept_out) == 3
    assert {row.where for row in kept_out}.isdisjoint(row.where for row in trained)
    with pytest.raises(UserError, match="no row is held out"):
        shown_rows(configured("sft", path), tiny_tokenizer, 1, held_out=True)


def test_a_dropped_row_is_not_shown_but_told(configured, tiny_tokenizer, write_rows):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "查看", "chosen": "好", "rejected": "坏"}]
    config = configured("dpo", write_rows(rows))
    lines = list(show(config, 3))
    assert any("dropped 1: chosen equals rejected" in line for line in lines)
    text = "\n".join(lines)
    assert "查看<|im_end|>\n<|im_start|>assistant\n{+好<|im_end|>+}" in text
    assert "{+坏<|im_end|>+}" in text
    assert "row 1 | " in text


def test_a_ranking_is_shown_in_its_order(configured, write_rows):
    path = write_rows([{"instruction": "q", "output": ["best", "fair", "bad"]}])
    lines = list(show(configured("rm", path), 1))
    assert [line.split(":")[0] for line in lines if line.startswith("rank ")] == [
        "rank 1 (best)",
        "rank 2",
        "rank 3 (worst)",
    ]


def test_prompts_are_shown_with_what_rewards_read(configured, write_rows):
    path = write_rows([{"instruction": "add", "solution": 7, "tags": ["a"]}])
    lines = list(show(configured("grpo", path), 1))
    assert any(line.endswith("<the model goes on from here>") for line in lines)
    assert "  solution: 7" in lines
    assert '  tags: ["a"]' in lines
    assert not any("{+" in line for line in lines[lines.index("") :])


def test_the_twin_of_a_judged_answer_does_not_train(configured):
    lines = list(show(configured("kto", "judged.json"), 1))
    twin = next(i for i, line in enumerate(lines) if line.startswith("mismatched twin"))
    assert "measured" in lines[twin]
    assert "{+" not in lines[twin + 1]
    assert "{+" in lines[twin - 1]
