"""Stages from Python: the same runs as from a file, and what becomes of the objects that were handed in."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import posttrain
from posttrain.errors import UserError
from posttrain.models.lineage import fingerprint, read_lineage
from posttrain.train.progress import Progress

SHORT = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True, "report_to": "none"}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture
def rows(tiny_data):
    """The rows of the tiny datasets, by name."""

    def read(name):
        text = (tiny_data / name).read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)

    return read


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet(sentence):
    """Nobody listens."""


def weights(folder):
    (file,) = [
        f for f in folder.glob("*model.safetensors") if f.name in ("adapter_model.safetensors", "model.safetensors")
    ]
    return load_file(file)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def snapshot(model):
    """All that a run could change about a model: weights, what asks for gradients, modules, attention."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = [(name, type(part)) for name, part in model.named_modules()]
    asked = [parameter.requires_grad for parameter in model.parameters()]
    return state, (parts, asked, model.config._attn_implementation, model.training)


@pytest.mark.parametrize(
    ("trainer", "stage", "file"),
    [
        (posttrain.Pretrainer, "pt", "text.jsonl"),
        (posttrain.SFTTrainer, "sft", "chat.json"),
        (posttrain.RewardTrainer, "rm", "pairs.json"),
        (posttrain.DPOTrainer, "dpo", "pairs.json"),
        (posttrain.KTOTrainer, "kto", "judged.json"),
    ],
)
def test_an_adapter_is_bit_for_bit_that_of_the_file_and_the_model_stays(
    here, tiny_llama, tiny_data, rows, trainer, stage, file
) -> None:
    base = {"stage": stage, "model_name_or_path": str(tiny_llama), "dataset": str(tiny_data / file), "cutoff_len": 64}
    keys = {**SHORT, "per_device_train_batch_size": 4}
    lora = {"lora_rank": 4, "lora_alpha": 8, "lora_target": "all"}
    posttrain.run_exp({**base, **keys, **lora, "output_dir": str(here / "file")}, notify=quiet)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    state, rest = snapshot(model)
    made = trainer(
        model,
        tokenizer=AutoTokenizer.from_pretrained(tiny_llama),
        train_dataset=rows(file),
        peft_config=LoraConfig(**LORA),
        max_seq_length=64,
        output_dir="objects",
        notify=quiet,
        **keys,
    )
    results = made.train()
    assert results["stopped_at_step"] == 3
    assert same(weights(here / "objects"), weights(here / "file"))
    after, others = snapshot(model)
    assert same(state, after)
    assert rest == others
    found, expected = (read_lineage(here / name) for name in ("objects", "file"))
    assert (found.base, found.template, found.stage) == (expected.base, expected.template, expected.stage)


def test_without_a_peft_config_the_model_itself_is_trained(here, tiny_llama, tiny_data, rows) -> None:
    keys = {**SHORT, "per_device_train_batch_size": 4, "cutoff_len": 64}
    files = {"model_name_or_path": str(tiny_llama), "dataset": str(tiny_data / "chat.json"), "output_dir": "file"}
    posttrain.run_exp({"finetuning_type": "full", **files, **keys}, notify=quiet)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    _, rest = snapshot(model)
    trainer = posttrain.SFTTrainer(model, train_dataset=rows("chat.json"), output_dir="objects", notify=quiet, **keys)
    trainer.train()
    assert trainer.save_model("copy").name == "copy"
    after, others = snapshot(model)
    for name in ("objects", "file", "copy"):
        saved = weights(here / name)
        assert same({key: after[key] for key in saved}, saved)
    assert rest == others
    with torch.no_grad():
        ids = torch.arange(5, 12)[None]
        assert torch.equal(model(ids).logits, AutoModelForCausalLM.from_pretrained("copy")(ids).logits)
    assert not same(after, AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict())


def test_a_model_that_no_folder_holds_is_kept_and_the_file_repeats_the_run(here, make_model, rows, tiny_llama) -> None:
    """Made in memory, with a tokenizer given: the adapter stands on output_dir/inputs/model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    said = []
    made = posttrain.SFTTrainer(
        model,
        tokenizer=tokenizer,
        train_dataset=rows("chat.json"),
        eval_dataset=rows("chat.json")[:2],
        peft_config=LoraConfig(**LORA),
        output_dir="run",
        notify=said.append,
        **SHORT,
    )
    assert not (here / "run").exists()
    made.train()
    assert any("no folder holds the weights of LlamaForCausalLM" in sentence for sentence in said)
    lineage = read_lineage(here / "run")
    assert lineage.base.fingerprint == fingerprint(model)
    base = AutoModelForCausalLM.from_pretrained(lineage.base.name_or_path)
    assert same(base.state_dict(), model.state_dict())
    PeftModel.from_pretrained(base, "run")
    posttrain.run_exp({**_read_config("run"), "output_dir": "again"}, notify=quiet)
    assert same(weights(here / "again"), weights(here / "run"))
    # a fourth step is made on the very same base, and another model is refused
    keys = {**SHORT, "max_steps": 4, "resume_from_checkpoint": True}
    options = {"train_dataset": rows("chat.json"), "output_dir": "run", "notify": quiet, "tokenizer": tokenizer}
    go_on = posttrain.SFTTrainer(model, peft_config=LoraConfig(**LORA), **options, **keys)
    assert go_on.train()["total_steps"] == 4
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    other = posttrain.SFTTrainer(model, peft_config=LoraConfig(**LORA), **options, **{**keys, "max_steps": 5})
    with pytest.raises(UserError, match="has other weights than those that the run in run began with"):
        other.train()


def _read_config(folder):
    import yaml

    with open(f"{folder}/config.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


@pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)])
def test_interrupted_and_called_again_it_ends_with_the_same_bytes(
    here, tiny_llama, rows, monkeypatch, peft_config
) -> None:
    """Ctrl-C in the second step, in a notebook; the model in memory has moved when all weights train."""

    def make(folder):
        return posttrain.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_llama),
            train_dataset=rows("chat.json"),
            peft_config=peft_config,
            output_dir=folder,
            save_steps=1,
            notify=quiet,
            **SHORT,
        )

    make("whole").train()
    trainer, update, calls = make("halved"), Progress.update, []

    def interrupted(self, count, **shown):
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt
        update(self, count, **shown)

    monkeypatch.setattr(Progress, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.setattr(Progress, "update", update)
    assert (here / "halved" / "checkpoint-1").is_dir()
    assert trainer.train()["stopped_at_step"] == 3
    assert same(weights(here / "whole"), weights(here / "halved"))
    assert read_lineage(here / "whole").base == read_lineage(here / "halved").base


def test_evaluation_before_and_after(here, tiny_llama, rows) -> None:
    texts = rows("text.jsonl")
    trainer = posttrain.Pretrainer(
        str(tiny_llama), train_dataset=texts[2:], eval_dataset=texts[:2], block_size=32, notify=quiet, **SHORT
    )
    before = trainer.evaluate()
    results = trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(results["eval_loss_before"])
    assert after["eval_loss"] == results["eval_loss"] < before["eval_loss"]
    assert math.exp(after["eval_loss"]) == pytest.approx(after["eval_perplexity"])
    assert (here / "runs" / "pt" / "all_results.json").is_file()
    with pytest.raises(UserError, match="no held-out rows"):
        posttrain.Pretrainer(str(tiny_llama), train_dataset=texts, notify=quiet, **SHORT).evaluate()
    dpo = posttrain.DPOTrainer(str(tiny_llama), train_dataset=rows("pairs.json"), val_size=2, notify=quiet, **SHORT)
    with pytest.raises(UserError, match="call train"):
        dpo.evaluate()


def group_texts(examples, block_size):
    """The tutorial's function, for one column."""
    concatenated = sum(examples["input_ids"], [])  # noqa: RUF017
    total_length = (len(concatenated) // block_size) * block_size
    return [concatenated[i : i + block_size] for i in range(0, total_length, block_size)]


@pytest.mark.parametrize("block_size", [16, 24, 31])
def test_pretraining_has_the_blocks_of_the_tutorial(here, tiny_llama, rows, block_size) -> None:
    """As many whole blocks of the same tokens; the remainder, which the tutorial drops, is one more, shorter row."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = rows("text.jsonl")
    tokenised = {"input_ids": [tokenizer(row["text"] + tokenizer.eos_token)["input_ids"] for row in texts]}
    expected = group_texts(tokenised, block_size)
    rest = sum(map(len, tokenised["input_ids"])) % block_size
    trainer = posttrain.Pretrainer(
        str(tiny_llama), train_dataset=texts, block_size=block_size, output_dir="run", notify=quiet, **SHORT
    )
    parts = trainer._prepared()
    found = [row.input_ids for row in parts.splits.train]
    assert found[: len(expected)] == expected
    assert [len(row) for row in found[len(expected) :]] == ([rest] if rest > 1 else [])


def test_a_classifier_begins_a_reward_model(here, tiny_llama, rows) -> None:
    """LoRA: on the language model that the folder holds, which PPO loads too; the head starts as the classifier's."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    state, rest = snapshot(model)
    trainer = posttrain.RewardTrainer(
        model,
        args=TrainingArguments("rm", **{**SHORT, "learning_rate": 0.0}),
        train_dataset=rows("pairs.json"),
        peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA),
        notify=quiet,
    )
    trainer.train()
    head = load_file("rm/value_head.safetensors")["v_head.summary.weight"]
    assert torch.equal(head, model.score.weight.detach())
    assert read_lineage("rm").base.fingerprint == fingerprint(AutoModelForCausalLM.from_pretrained(tiny_llama))
    after, others = snapshot(model)
    assert same(state, after)
    assert rest == others


def test_a_classifier_whose_weights_all_train_scores_as_the_saved_one(here, tiny_llama, rows) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    before = model.score.weight.detach().clone()
    posttrain.RewardTrainer(
        model, train_dataset=rows("pairs.json"), tokenizer=tokenizer, output_dir="rm", notify=quiet, **SHORT
    ).train()
    assert not torch.equal(before, model.score.weight)
    export = {"stage": "rm", "model_name_or_path": "rm", "export_dir": "exported"}
    posttrain.export_model(export, notify=quiet)
    exported = AutoModelForSequenceClassification.from_pretrained("exported")
    ids = torch.tensor([tokenizer("name a fruit like fig")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, exported.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_classifier_of_two_labels_gets_a_new_head_and_says_so(here, tiny_llama, rows) -> None:
    said = []
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama)
    posttrain.RewardTrainer(
        model, train_dataset=rows("pairs.json"), output_dir="rm", notify=said.append, **SHORT
    ).train()
    assert any("has 2 labels, and a reward is one number" in sentence for sentence in said)


def test_training_arguments_are_read_field_by_field(here, tiny_llama, rows) -> None:
    args = TrainingArguments(
        "run",
        eval_strategy="epoch",
        learning_rate=2e-5,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        logging_steps=500,
        torch_compile=True,
        num_train_epochs=2,
    )
    trainer = posttrain.SFTTrainer(
        str(tiny_llama), args, train_dataset=rows("chat.json"), eval_dataset=rows("chat.json"), seed=7, notify=quiet
    )
    train = trainer.config.train
    assert (train.output_dir, train.eval_strategy, train.learning_rate) == ("run", "epoch", 2e-5)
    assert (train.weight_decay, train.lr_scheduler_type, train.logging_steps) == (0.01, "cosine", 500)
    assert (train.num_train_epochs, train.seed) == (2, 7)
    assert any("torch_compile" in sentence for sentence in trainer.config.warnings)
    plain = posttrain.SFTTrainer(
        str(tiny_llama), TrainingArguments("run"), train_dataset=rows("chat.json"), notify=quiet
    )
    assert plain.config.warnings == ()
    refused = TrainingArguments("run", label_smoothing_factor=0.1)
    with pytest.raises(UserError, match=r"`label_smoothing_factor: 0.1` is not supported"):
        posttrain.SFTTrainer(str(tiny_llama), refused, train_dataset=rows("chat.json"), notify=quiet)


def test_every_field_of_training_arguments_is_known(here) -> None:
    """Each is a key, a former name of one, or has its sentence: none could be called unknown."""
    from posttrain.config.foreign import FOREIGN
    from posttrain.config.loader import KEYS
    from posttrain.config.renamed import RENAMED
    from posttrain.config.translate import TRANSLATED

    known = {*KEYS, *RENAMED, *TRANSLATED, *FOREIGN}
    assert [name for name in TrainingArguments("run").to_dict() if name not in known] == []


MISTAKES = [
    ({"model": 3}, "model is a int; give a name, a folder"),
    ({"model": None}, "`model_name_or_path` is missing"),
    ({"tokenizer": "gpt2"}, "tokenizer is a str; give a tokenizer of transformers"),
    ({"tokenizer": ..., "processing_class": ...}, "`tokenizer` and `processing_class` mean the same"),
    ({"train_dataset": []}, "train_dataset is empty"),
    ({"train_dataset": 3}, "train_dataset is a int; give a path"),
    ({"train_dataset": {"train": object(), "test": object()}}, "is a mapping with train, test: give one split"),
    ({"train_dataset": {"prompt": ["a"], "response": []}}, "columns have different numbers of values"),
    ({"train_dataset": [3]}, "train_dataset, row 1: expected a mapping such as"),
    ({"train_dataset": [{"input_ids": [1, 2]}]}, "train_dataset holds token ids"),
    ({"dataset_text_field": "review"}, "train_dataset, row 1: no column 'review' .found: instruction, input, output"),
    ({"eval_dataset": []}, "eval_dataset is empty"),
    ({"dataset": "chat"}, "`train_dataset` and the key `dataset` both name rows"),
    ({"args": 3}, "args is a int"),
    ({"stage": "rm"}, "SFTTrainer is stage sft, and the keys say stage: rm"),
    ({"data_collator": print}, "`data_collator` has no place here: batches are made from the rows"),
    ({"max_seq_length": 8, "block_size": 9}, "mean the same; keep one"),
    ({"max_sequence_length": 8}, "unknown key `max_sequence_length`"),
    ({"peft_config": {"r": 4}}, "peft_config is a dict; give a peft.LoraConfig"),
    ({"peft_config": LoraConfig(r=4), "lora_rank": 8}, "`lora_rank=8` contradicts peft_config, which says 4"),
    ({"peft_config": LoraConfig(task_type="SEQ_CLS")}, "`task_type=.*` cannot be honoured: that is for a reward model"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_named_before_anything_is_written(here, tiny_llama, rows, changes, message) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    given = {
        "model": str(tiny_llama),
        "train_dataset": rows("chat.json"),
        **{name: tokenizer if value is ... else value for name, value in changes.items()},
    }
    with pytest.raises(UserError, match=message):
        posttrain.SFTTrainer(output_dir="run", notify=quiet, **SHORT, **given)
    assert list(here.iterdir()) == []


def test_mistakes_that_show_later(here, tiny_llama, rows, monkeypatch) -> None:
    options = {"train_dataset": rows("chat.json"), "output_dir": "run", "notify": quiet, **SHORT}
    trainer = posttrain.SFTTrainer(str(tiny_llama), **options)
    with pytest.raises(UserError, match="call train"):
        trainer.save_model("copy")
    trainer.train()
    with pytest.raises(UserError, match="holds a model that this policy stands on"):
        trainer.save_model(tiny_llama)
    assert str(trainer.save_model()) == "run"
    with pytest.raises(UserError, match="already holds a finished run"):
        trainer.train()
    picture = [{**row, "photo": object()} for row in rows("chat.json")]
    with pytest.raises(UserError, match="train_dataset, row 1: column 'photo' holds a object"):
        posttrain.SFTTrainer(str(tiny_llama), **{**options, "train_dataset": picture, "output_dir": "other"}).train()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="SFTTrainer is one process"):
        posttrain.SFTTrainer(str(tiny_llama), **options)


def test_other_rows_do_not_continue_a_run(here, tiny_llama, rows) -> None:
    options = {"output_dir": "run", "notify": quiet, **SHORT}
    posttrain.SFTTrainer(str(tiny_llama), train_dataset=rows("chat.json"), **options).train()
    options["max_steps"] = 4
    other = posttrain.SFTTrainer(
        str(tiny_llama), train_dataset=rows("chat.json")[1:], resume_from_checkpoint=True, **options
    )
    with pytest.raises(UserError, match="train_dataset holds other rows than those that the run in run began with"):
        other.train()
    afresh = posttrain.SFTTrainer(
        str(tiny_llama), train_dataset=rows("chat.json")[1:], overwrite_output_dir=True, **options
    )
    assert afresh.train()["total_steps"] == 4
