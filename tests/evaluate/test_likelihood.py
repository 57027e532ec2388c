import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.evaluate.bootstrap import estimates
from posttrain.evaluate.likelihood import MEASURES, likelihood_records
from posttrain.evaluate.rows import read_rows
from posttrain.evaluate.wardrobe import load_wearing


@pytest.fixture(scope="module")
def wardrobe(eval_config, trained):
    return load_wearing(eval_config(variants=["base", f"sft={trained / 'sft'}"]))


@pytest.fixture(scope="module")
def rows(eval_config, wardrobe):
    return read_rows(eval_config(), wardrobe.tokenizer, "sft")[0]


def measured(wardrobe, rows, size):
    seen = []
    records = likelihood_records(wardrobe, rows, batch_size=size, progress=lambda *call: seen.append(call))
    found = {}
    for name, each in records.items():
        figures = {key: e.value for key, e in estimates(MEASURES, each, seed=1, level=0.95).items()}
        found[name] = figures | {"num_tokens": sum(record["num_tokens"] for record in each)}
    return found, seen


def test_the_loss_is_the_mean_over_all_answer_tokens(wardrobe, rows, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    total, count, right = 0.0, 0, 0
    for row in rows:
        labels = torch.tensor([[i if m else -100 for i, m in zip(row.input_ids, row.loss_mask, strict=True)]])
        with torch.no_grad():
            out = model(torch.tensor([row.input_ids]), labels=labels)
        total, count = total + float(out.loss) * sum(row.loss_mask), count + sum(row.loss_mask)
        right += int((out.logits[0, :-1].argmax(-1) == labels[0, 1:]).sum())
    found, _ = measured(wardrobe, rows, 5)
    assert found["base"]["loss"] == pytest.approx(total / count, abs=1e-4)
    assert found["base"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)
    assert found["base"]["num_tokens"] == count
    assert found["base"]["token_accuracy"] == pytest.approx(right / count)
    assert found["sft"]["token_accuracy"] > found["base"]["token_accuracy"]
    assert found["sft"]["loss"] < found["base"]["loss"] - 0.5


def test_the_batch_size_changes_nothing_but_the_progress(wardrobe, rows):
    (one, seen_one), (all_, seen_all) = measured(wardrobe, rows, 1), measured(wardrobe, rows, len(rows))
    for name in ("base", "sft"):
        assert one[name]["loss"] == pytest.approx(all_[name]["loss"], abs=1e-5)
    assert len(seen_one) == 2 * len(rows)
    assert seen_all == [("score base", 1, 1), ("score sft", 1, 1)]


def test_the_first_token_of_a_document_is_not_counted(eval_config, wardrobe, tiny_data):
    config = eval_config(eval_dataset=str(tiny_data / "text.jsonl"), packing=False)
    documents = read_rows(config, wardrobe.tokenizer, "pt")[0]
    found, _ = measured(wardrobe, documents, 4)
    assert found["base"]["num_tokens"] == sum(len(row) - 1 for row in documents)
