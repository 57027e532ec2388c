"""PPO whose reward has parts of every kind: a reward model, a classifier with its own tokenizer, a function, rules."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from posttrain.train.run import train

WEIGHTS = {"reward_model": 1.0, "reward_classifier": 0.5, "count": 0.1, "length": 2.0, "repetition": 1.0}


@pytest.fixture
def classifier(tmp_path):
    """A random BERT that reads letters and knows two moods."""
    folder = tmp_path / "classifier"
    letters = {"[PAD]": 0, "[UNK]": 1, **{chr(code): code - 30 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(4)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(letters), **size, id2label={0: "SAD", 1: "GLAD"}, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_every_part_is_scored_weighted_and_written_down(tiny_config, trained, classifier, tmp_path, critic) -> None:
    (tmp_path / "mine.py").write_text(
        "async def count(completion, messages):\n    assert messages[-1]['role'] == 'user'\n"
        "    return completion.count('a')\n",
        encoding="utf-8",
    )
    keys = {
        "reward_model": str(trained / "rm"),
        "reward_classifier": str(classifier),
        "reward_label": "glad",
        "reward_label_value": "log_probability",
        "reward_funcs": [f"{tmp_path / 'mine.py'}:count", "length:4-12", "repetition:1"],
        "reward_weights": list(WEIGHTS.values()),
        **{"critic": critic, "ppo_score_norm": True, "val_size": 2, "max_steps": 2},
    }
    results = train(tiny_config("ppo", tmp_path / "out", **keys))
    assert math.isfinite(results["eval_reward"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert row["reward"] == pytest.approx(sum(w * row[f"reward/{part}"] for part, w in WEIGHTS.items()), abs=1e-5)
        assert row["reward/count"] == row["completion"].count("a")
        assert row["reward/reward_classifier"] < 0
    log = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    first = next(line for line in log if "reward_mean" in line)
    for part in WEIGHTS:
        mean = sum(row[f"reward/{part}"] for row in rows if row["step"] == 1) / 4
        assert first[f"reward/{part}_mean"] == pytest.approx(mean, abs=1e-5)
