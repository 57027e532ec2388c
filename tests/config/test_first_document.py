"""The five YAML files that users of LLaMA-Factory 0.8.2 follow for SFT, reward, merge, PPO and prediction."""

import pytest

from posttrain.config import load_config

SFT = """\
# model
model_name_or_path: E:\\PyCharm\\PreTrainModel\\qwen2_7b

# method
stage: sft
do_train: true
finetuning_type: lora
lora_target: all

# dataset
dataset: train_clean
dataset_dir: ../data
template: qwen
cutoff_len: 1024
overwrite_cache: true
preprocessing_num_workers: 2

# output
output_dir: E:\\PyCharm\\PreTrainModel\\qwen2_7b_sft
logging_steps: 10
save_steps: 100
plot_loss: true
overwrite_output_dir: true

# train
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_steps: 0.1
fp16: true

# eval
val_size: 0.1
per_device_eval_batch_size: 4
evaluation_strategy: steps
eval_steps: 100
"""

REWARD = """\
model_name_or_path: /mnt/e/PyCharm/PreTrainModel/qwen2_7b
stage: rm
do_train: true
finetuning_type: lora
lora_target: all
dataset: rw_data
dataset_dir: ../data
template: qwen
cutoff_len: 1024
max_samples: 3000
overwrite_cache: true
preprocessing_num_workers: 1
output_dir: /mnt/e/PyCharm/PreTrainModel/qwen2_7b_rm
logging_steps: 10
save_steps: 100
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
fp16: true
ddp_timeout: 180000000
val_size: 0.1
per_device_eval_batch_size: 2
eval_strategy: steps
eval_steps: 500
"""

MERGE = """\
model_name_or_path: E:\\PyCharm\\PreTrainModel\\qwen2_7b
adapter_name_or_path: E:\\PyCharm\\PreTrainModel\\qwen2_7b_sft
template: qwen
finetuning_type: lora
export_dir: /mnt/e/PyCharm/PreTrainModel/qwen2_7b_sft_merge
export_size: 2
export_device: cpu
export_legacy_format: true
"""

PPO = """\
model_name_or_path: /mnt/e/PyCharm/PreTrainModel/qwen2_7b_sft_merge
reward_model: /mnt/e/PyCharm/PreTrainModel/qwen2_7b_rm
stage: ppo
do_train: true
finetuning_type: lora
lora_target: all
dataset: train_clean
dataset_dir: ../data
template: qwen
cutoff_len: 1024
max_samples: 2000
overwrite_cache: true
preprocessing_num_workers: 1
output_dir: /mnt/e/PyCharm/PreTrainModel/qwen2_7b_sql_ppo_1_batch
logging_steps: 10
save_steps: 100
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-5
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
fp16: true
ddp_timeout: 180000000
max_new_tokens: 512
top_k: 0
top_p: 0.9
"""

PREDICT = """\
model_name_or_path: E:\\PyCharm\\PreTrainModel\\qwen2_7b_sft_merge
adapter_name_or_path: E:\\PyCharm\\PreTrainModel\\qwen2_7b_sql_ppo_1_batch
stage: sft
finetuning_type: lora
template: qwen
"""


@pytest.fixture
def load(tmp_path):
    def read(text, **options):
        path = tmp_path / "qwen2.yaml"
        path.write_text(text, encoding="utf-8", newline="\n")
        return load_config(path, **options)

    return read


def test_sft(load):
    config = load(SFT)
    assert config.model.model_name_or_path == r"E:\PyCharm\PreTrainModel\qwen2_7b"
    assert config.train.output_dir == r"E:\PyCharm\PreTrainModel\qwen2_7b_sft"
    assert config.data.dataset == ("train_clean",)
    assert config.method.lora_target == ("all",)
    assert config.train.warmup_ratio == 0.1
    assert config.train.warmup_steps == 0
    assert config.train.fp16 is True
    assert config.train.learning_rate == 1e-5
    assert (config.train.eval_strategy, config.train.eval_steps) == ("steps", 100)
    assert len(config.warnings) == 2
    assert "`warmup_steps: 0.1`" in config.warnings[0]
    assert "`evaluation_strategy` is called `eval_strategy`" in config.warnings[1]


def test_reward(load):
    config = load(REWARD)
    assert config.method.stage == "rm"
    assert config.data.max_samples == 3000
    assert config.train.ddp_timeout == 180000000
    assert config.warnings == ()


def test_merge(load):
    config = load(MERGE, command="export")
    assert config.model.adapter_name_or_path == (r"E:\PyCharm\PreTrainModel\qwen2_7b_sft",)
    assert config.export.export_dir == "/mnt/e/PyCharm/PreTrainModel/qwen2_7b_sft_merge"
    assert config.export.export_size == 2
    assert len(config.warnings) == 1
    assert "safetensors" in config.warnings[0]


def test_ppo(load):
    config = load(PPO)
    assert config.reward.reward_model == "/mnt/e/PyCharm/PreTrainModel/qwen2_7b_rm"
    assert (config.generation.top_k, config.generation.top_p, config.generation.temperature) == (0, 0.9, 1.0)
    assert config.generation.max_new_tokens == 512
    assert len(config.warnings) == 1
    assert "top_p 0.9" in config.warnings[0]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("infer_backend: huggingface", "`infer_backend` is ignored: completions are decoded by posttrain's own"),
        ("evaluation_strategy: steps", "`evaluation_strategy` is called `eval_strategy` here and read as such."),
        ("warmup_steps: 0.1", "taken as a share of the run (warmup_ratio: 0.1)"),
        ("flash_attn: fa2", "`flash_attn` is ignored: attention is computed by"),
    ],
)
def test_what_is_read_differently_is_said(load, line, part):
    given = SFT.replace("evaluation_strategy: steps\n", "").replace("warmup_steps: 0.1\n", "")
    config = load(given + line + "\n")
    assert any(part in sentence for sentence in config.warnings), config.warnings


def test_quantised_training_is_taken(load):
    assert load(SFT + "quantization_bit: 4\n").model.quantization_bit == 4


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_predict(load, command):
    config = load(PREDICT, command=command)
    assert config.model.adapter_name_or_path == (r"E:\PyCharm\PreTrainModel\qwen2_7b_sql_ppo_1_batch",)
    assert config.data.dataset == ()
    assert config.warnings == ()


@pytest.mark.parametrize("text", [SFT, REWARD, PPO])
def test_a_training_file_can_be_exported_and_chatted_with(load, text):
    assert load(text + "export_dir: merged\n", command="export").export.export_dir == "merged"
    assert load(text, command="chat").data.template == "qwen"
