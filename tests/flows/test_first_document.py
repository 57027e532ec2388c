"""The first reference flow as its author would run it: SFT, reward model, merge, PPO on the merge, prediction.

The five YAML files keep the keys, values and slips of a LLaMA-Factory 0.8.2 user; only paths and lengths differ.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import posttrain
from posttrain.cli import main
from posttrain.models.adapter_files import read_adapter
from posttrain.models.lineage import read_lineage

TABLES = ("委托备案信息", "镇名休闲农业园区", "重点旅游村", "学校", "图书")
SHARED = """
finetuning_type: lora
lora_target: all
dataset_dir: {data}
template: qwen
cutoff_len: 1024
overwrite_cache: true
preprocessing_num_workers: 2
logging_steps: 10
save_steps: 100
plot_loss: true
overwrite_output_dir: true
learning_rate: 1.0e-5
lr_scheduler_type: cosine
fp16: true
"""
SFT = """
model_name_or_path: {base}
stage: sft
do_train: true
dataset: train_clean
output_dir: {root}/sft
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
num_train_epochs: 3.0
warmup_steps: 0.1
val_size: 0.1
per_device_eval_batch_size: 4
evaluation_strategy: steps
eval_steps: 100
"""
REWARD = """
model_name_or_path: {base}
stage: rm
do_train: true
dataset: rw_data
max_samples: 3000
output_dir: {root}/rm
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
num_train_epochs: 3.0
warmup_ratio: 0.1
ddp_timeout: 180000000
val_size: 0.1
per_device_eval_batch_size: 2
eval_strategy: steps
eval_steps: 500
"""
MERGE = """
model_name_or_path: {base}
adapter_name_or_path: {root}/sft
template: qwen
finetuning_type: lora
export_dir: {root}/sft_merge
export_size: 2
export_device: cpu
export_legacy_format: true
"""
PPO = """
model_name_or_path: {root}/sft_merge
reward_model: {root}/rm
stage: ppo
do_train: true
dataset: train_clean
max_samples: 2000
output_dir: {root}/ppo
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 2.0
warmup_ratio: 0.1
ddp_timeout: 180000000
max_new_tokens: 12
top_k: 0
top_p: 0.9
"""
PREDICT = """
model_name_or_path: {root}/sft_merge
adapter_name_or_path: {root}/ppo
stage: sft
finetuning_type: lora
template: qwen
"""


def rows():
    """Instruction rows and ranking rows in the document's two shapes."""
    chats, pairs = [], []
    for number in range(20):
        table = TABLES[number % len(TABLES)]
        question = f"<question>:查看{table}{number}\nCREATE TABLE {table} (序号 FLOAT,\n名称 VARCHAR(255));"
        good, bad = f"\nSELECT * FROM {table} WHERE 序号 > {number};\n", f"SELECT * FROM PG库 WHERE 序号 > {number}"
        chats.append({"instruction": question, "input": "", "output": good})
        asked = [{"from": "human", "value": question}]
        sides = {"chosen": {"from": "gpt", "value": good}, "rejected": {"from": "gpt", "value": bad}}
        pairs.append({"conversations": asked, **sides})
    return chats, pairs


@pytest.fixture(scope="module")
def place(tiny_llama, tmp_path_factory):
    """A base Qwen2 with its tokenizer, the two datasets, and where everything goes."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("first-document")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        Qwen2ForCausalLM(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    chats, pairs = rows()
    data = root / "data"
    data.mkdir()
    for name, table in (("train_clean.json", chats), ("rw_data.json", pairs)):
        (data / name).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    info = {
        "train_clean": {"file_name": "train_clean.json"},
        "rw_data": {
            "file_name": "rw_data.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
    }
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {"root": root, "base": root / "base", "data": data}


def written(place, name, text):
    path = place["root"] / f"{name}.yaml"
    path.write_text(text.format(**place), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def flow(place):
    """The four commands, each fed by the ones before; nothing merged or moved by hand."""
    assert main(["train", written(place, "sft", SFT + SHARED)]) == 0
    assert main(["train", written(place, "reward", REWARD + SHARED)]) == 0
    assert main(["export", written(place, "merge", MERGE)]) == 0
    assert main(["train", written(place, "ppo", PPO + SHARED)]) == 0
    return place


def test_every_stage_leaves_what_its_users_look_for(flow):
    root = flow["root"]
    for stage in ("sft", "rm", "ppo"):
        for name in ("adapter_model.safetensors", "adapter_config.json", "trainer_log.jsonl", "all_results.json"):
            assert (root / stage / name).is_file(), f"{stage}/{name}"
        assert (root / stage / "training_loss.png").is_file()
    assert (root / "rm" / "value_head.safetensors").is_file()
    assert (root / "ppo" / "training_reward.png").is_file()
    results = json.loads((root / "rm" / "eval_results.json").read_text(encoding="utf-8"))
    assert {"eval_loss", "eval_accuracy", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"} <= set(
        results
    )


def test_warmup_of_a_tenth_is_a_ratio(flow):
    log = [json.loads(line) for line in (flow["root"] / "sft" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    resolved = yaml.safe_load((flow["root"] / "sft" / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["warmup_ratio"] == pytest.approx(0.1)
    assert log[-1]["total_steps"] == 9  # 18 rows, 8 a step, 3 epochs


def test_ppo_on_the_merge_shares_the_base_with_the_reward_and_starts_at_its_reference(flow):
    root = flow["root"]
    merged, actor, reward = (read_lineage(root / name) for name in ("sft_merge", "ppo", "rm"))
    assert reward.base.fingerprint == merged.base.fingerprint != merged.weights
    assert actor.base.fingerprint == merged.weights  # what PPO saves is valid on the merged model
    assert actor.parents == ()
    assert read_adapter(root / "ppo").base_model_name_or_path == str(root / "sft_merge")
    first = json.loads((root / "ppo" / "completions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert abs(first["kl"]) < 1e-4
    log = [json.loads(line) for line in (root / "ppo" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert log[-1]["total_steps"] == 6  # 20 prompts, 8 an iteration, 2 epochs


def test_the_merge_is_an_ordinary_model_that_took_part_of_the_adapter(flow):
    merged = AutoModelForCausalLM.from_pretrained(flow["root"] / "sft_merge")
    base = AutoModelForCausalLM.from_pretrained(flow["base"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[name], base.state_dict()[name])


def test_prediction_loop_of_the_document(flow):
    settings = yaml.safe_load(PREDICT.format(**flow))
    chat_model = posttrain.ChatModel(settings)
    chats, _ = rows()
    for item in chats[:2]:
        answers = chat_model.chat([{"role": "user", "content": item["instruction"]}], max_new_tokens=6)
        assert len(answers) == 1
        assert isinstance(answers[0].response_text, str)
        assert 1 <= answers[0].response_length <= 6
        assert answers[0].finish_reason in ("stop", "length")


def test_on_another_base_the_reward_brings_its_own_or_nothing_is_written(flow, capsys):
    other = flow["root"] / "other"
    model = AutoModelForCausalLM.from_pretrained(flow["base"])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (other / name).write_bytes((flow["base"] / name).read_bytes())
    text = PPO.replace("{root}/sft_merge", "{root}/other").replace("{root}/ppo", "{root}/elsewhere")
    config = written(flow, "elsewhere", text + SHARED)
    assert main(["train", config, "max_steps=1"]) == 0
    assert "a second backbone is in" in capsys.readouterr().err
    base = flow["base"].rename(flow["root"] / "base_was_moved")
    try:
        assert main(["train", config, f"output_dir={flow['root'] / 'refused'}"]) == 2
    finally:
        base.rename(flow["base"])
    message = capsys.readouterr().err
    assert "reward_model" in message
    assert "allow_mismatch" in message
    assert "Traceback" not in message
    assert not (flow["root"] / "refused").exists()
