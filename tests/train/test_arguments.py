"""Arguments of other trainers as keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from transformers import TrainingArguments

import posttrain
from posttrain.errors import UserError
from posttrain.train.arguments import keys_of, renamed


@dataclass
class SFTConfig(TrainingArguments):
    """As TRL derives its own from transformers': more fields, and other defaults of old ones."""

    dataset_text_field: str = "text"
    max_length: int | None = 1024
    packing: bool = False
    dataset_num_proc: int | None = None
    logging_steps: int = 5


def test_fields_of_a_derived_class_are_read_too(tiny_llama, tmp_path) -> None:
    """Those that were set, and of the known ones also defaults; lengths are of rows, not of answers."""
    rows = [{"review": "good good", "text": "x y"}] * 4
    args = SFTConfig(str(tmp_path), dataset_text_field="review", max_length=32, packing=True)
    trainer = posttrain.SFTTrainer(str(tiny_llama), args, train_dataset=rows, notify=lambda _: None)
    assert trainer.config.data.text_column == "review"
    assert trainer.config.data.cutoff_len == 32
    assert trainer.config.train.logging_steps == 5
    assert trainer.config.generation.max_new_tokens != 32
    rows = [{"prompt": "good", "response": "x y"}] * 4
    plain = posttrain.SFTTrainer(str(tiny_llama), SFTConfig("run"), train_dataset=rows, notify=lambda _: None)
    assert (plain.config.data.cutoff_len, plain.config.data.text_column) == (1024, None)
    assert keys_of(SFTConfig("run", max_length=None)).get("max_length") is None
    assert any("`packing: true` changes nothing in stage sft" in sentence for sentence in trainer.config.warnings)


def test_a_file_and_a_mapping(tmp_path) -> None:
    (tmp_path / "sft.yaml").write_text("learning_rate: 1.0e-3\nmax_steps: 4\n", encoding="utf-8")
    assert keys_of(tmp_path / "sft.yaml") == keys_of({"learning_rate": 1e-3, "max_steps": 4})
    assert keys_of(None) == {}
    with pytest.raises(UserError, match="args is a type; give keys"):
        keys_of(TrainingArguments)


def test_former_names_and_arguments_without_a_place() -> None:
    assert renamed({"block_size": 8, "beta": 0.2, "seed": 1}) == {"cutoff_len": 8, "pref_beta": 0.2, "seed": 1}
    assert renamed({"callbacks": [], "compute_metrics": None}) == {}
    with pytest.raises(UserError, match="`formatting_func` has no place here: map the rows first"):
        renamed({"formatting_func": str})


def test_keys_win_over_args(tiny_llama, tmp_path) -> None:
    args = {"output_dir": str(tmp_path / "one"), "max_steps": 3, "learning_rate": 1e-3}
    trainer = posttrain.SFTTrainer(
        str(tiny_llama), args, train_dataset="data/chat.json", max_steps=5, learning_rate=None, notify=lambda _: None
    )
    assert (trainer.config.train.max_steps, trainer.config.train.learning_rate) == (5, 1e-3)
    assert trainer.config.data.dataset == ("data/chat.json",)
    assert trainer.config.method.finetuning_type == "full"
    lora = posttrain.SFTTrainer(str(tiny_llama), args, train_dataset="a.json", lora_rank=4, notify=lambda _: None)
    assert lora.config.method.finetuning_type == "lora"
