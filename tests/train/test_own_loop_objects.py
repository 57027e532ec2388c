"""The own loop on objects in memory: models, adapters, prompts from a dataset, the log."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import posttrain
from posttrain.errors import UserError
from posttrain.models.lineage import read_lineage

QUERIES = {"query": [f"name a fruit like {fruit}" for fruit in ("apple", "pear", "plum", "fig", "kiwi")]}
QUERIES["number"] = [1, 2, 3, 4, 5]
KEYS = {"per_device_train_batch_size": 2, "max_new_tokens": 6, "learning_rate": 1e-2, "cutoff_len": 64, "seed": 1}


def make(notify=lambda sentence: None, **more):
    return posttrain.PPOTrainer({**KEYS, **more.pop("config", {})}, notify=notify, train_dataset=QUERIES, **more)


def go_through(trainer, passes=1):
    """The document's loop; rewards as tensors. Returns the queries in the order in which they came."""
    seen = []
    for _ in range(passes):
        for batch in trainer.dataloader:
            responses = trainer.generate(batch["query"])
            batch["response"] = [response.text for response in responses]
            rewards = [torch.tensor(float(len(set(response.token_ids)))) for response in responses]
            trainer.log_stats(trainer.step(batch["query"], responses, rewards), batch, rewards)
            seen.append(batch["query"])
    return seen


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_in_memory_with_a_peft_config_is_the_adapter_of_the_file(tiny_llama, trained, tmp_path) -> None:
    """On an SFT adapter, whose parent the run folds into weights of its own: the model stays as it is."""
    lora = {"lora_rank": 4, "lora_alpha": 8, "lora_target": "all", "adapter_name_or_path": str(trained / "sft")}
    by_name = posttrain.PPOTrainer(
        {**KEYS, **lora, "model_name_or_path": str(tiny_llama)}, notify=lambda _: None, train_dataset=QUERIES
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_memory = make(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(tiny_llama),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        config={"adapter_name_or_path": str(trained / "sft")},
    )
    for trainer, folder in ((by_name, "named"), (in_memory, "given")):
        go_through(trainer)
        assert trainer.save_model(tmp_path / folder) == tmp_path / folder
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("named", "given"))
    # to rounding: the copy's tensors are aligned in memory, those of a mapped file are not, and sums follow from that
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 3e-5
    assert same(before, model.state_dict())
    first, second = (read_lineage(tmp_path / name) for name in ("named", "given"))
    assert (first.base, first.parents) == (second.base, second.parents)
    assert len(second.parents) == 1


def test_without_a_peft_config_the_model_itself_learns_and_the_reference_does_not(tiny_llama, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    trainer = make(model=model, config={"output_dir": str(tmp_path / "run"), "finetuning_type": "full"})
    for batch in trainer.dataloader:
        responses = trainer.generate(batch["query"])
        first = trainer.step(batch["query"], responses, [1.0, 0.0])
    trainer.save_model()
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert same({name: model.state_dict()[name] for name in saved}, saved)
    assert abs(first["kl_k3"]) > 1e-7
    assert not same(model.state_dict(), AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict())


def test_a_model_that_lies_nowhere_needs_an_output_dir(tiny_llama, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    with pytest.raises(UserError, match=r"no folder holds the weights of LlamaForCausalLM .* give output_dir"):
        make(model=model)
    said = []
    trainer = make(said.append, model=model, config={"output_dir": str(tmp_path / "run")})
    assert any("no folder holds the weights" in sentence for sentence in said)
    assert trainer.config.model.model_name_or_path == str(tmp_path / "run" / "inputs" / "model")
    assert go_through(trainer)


def test_batches_are_those_of_the_pass_under_way_also_after_a_resume(tiny_llama, tmp_path) -> None:
    """Five prompts in batches of two: one is left out of each pass; two passes differ in order."""
    keys = {"model": str(tiny_llama), "config": {"output_dir": str(tmp_path)}}
    whole = make(**keys)
    assert len(whole.dataloader) == 2
    seen = go_through(whole, passes=2)
    assert [len(queries) for queries in seen] == [2, 2, 2, 2]
    for one_pass in (seen[:2], seen[2:]):
        assert len({query for queries in one_pass for query in queries}) == 4
    assert seen[:2] != seen[2:]
    trainer = make(model=str(tiny_llama), config={"output_dir": str(tmp_path / "halved")})
    for batch in trainer.dataloader:
        trainer.step(batch["query"], trainer.generate(batch["query"]), [1.0, 0.0])
        trainer.save_checkpoint()
        break
    again = make(model=str(tiny_llama), config={"output_dir": str(tmp_path / "halved")})
    assert again.resume() == 1
    assert [batch["query"] for batch in again.dataloader] == seen[1:2]
    few = posttrain.PPOTrainer(KEYS, model=str(tiny_llama), train_dataset=[{"query": "a fruit"}], notify=lambda _: None)
    assert [batch["query"] for batch in few.dataloader] == [["a fruit"]]
    groups = make(model=str(tiny_llama), config={"num_return_sequences": 2})
    assert [len(batch["query"]) for batch in groups.dataloader] == [1] * 5
    assert {"query", "number"} == set(next(iter(groups.dataloader)))


def test_the_log_of_a_loop(tiny_llama, tmp_path) -> None:
    said = []
    trainer = make(said.append, model=str(tiny_llama), config={"output_dir": str(tmp_path)})
    seen = go_through(trainer)
    assert any(sentence.startswith("step 2: reward_mean ") for sentence in said)
    lines = [json.loads(line) for line in (tmp_path / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert [line["current_steps"] for line in lines] == [1, 2]
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [query for queries in seen for query in queries]
    assert all({"step", "prompt", "completion", "reward", "number"} == set(row) for row in rows)
    trainer.save_checkpoint()
    go_through(trainer)
    again = make(model=str(tiny_llama), config={"output_dir": str(tmp_path)})
    assert again.resume() == 2
    lines = (tmp_path / "trainer_log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["current_steps"] for line in lines] == [1, 2]
    with pytest.raises(UserError, match="log_stats was given 1 rewards and 2 values of 'query'"):
        trainer.log_stats({}, {"query": ["a", "b"]}, [1.0])


def test_mistakes(tiny_llama) -> None:
    with pytest.raises(UserError, match=r"there is no train_dataset to go through"):
        _ = posttrain.PPOTrainer(KEYS, model=str(tiny_llama), notify=lambda _: None).dataloader
    with pytest.raises(UserError, match="config is a int; give keys as a mapping"):
        posttrain.PPOTrainer(3, model=str(tiny_llama))
    with pytest.raises(UserError, match="`model` and `model_name_or_path` both name a model"):
        make(model=str(tiny_llama), config={"model_name_or_path": str(tiny_llama)})
    with pytest.raises(UserError, match="train_dataset is empty"):
        posttrain.PPOTrainer(KEYS, model=str(tiny_llama), train_dataset={"query": []}, notify=lambda _: None)
