"""Set-ups of other programs as our files: values in their meaning, what is lost is said, and the result loads."""

import shlex

import pytest
import yaml

from posttrain.config import load_config
from posttrain.config.convert import converted, flags_of
from posttrain.config.documents import read_document
from posttrain.errors import UserError

THIRD = (
    'python3 train.py --device 0 --train_file_path "data/ppo_train.json" --max_len 768 --query_len 64 --batch_size 16'
)


def resolved(found, command="train"):
    """What the written file loads as; nothing in it may need a second translation."""
    config = load_config(yaml.safe_load(found.text()), command=command)
    assert not any("read as" in note or "is called" in note or "ignored" in note for note in config.warnings)
    return config


def lost(found):
    return {written.split(":")[0] for written, _ in found.lost}


def test_the_script_of_the_third_document():
    found = converted(shlex.split(THIRD))
    config = resolved(found)
    assert config.method.stage == "ppo"
    assert (config.method.finetuning_type, config.ppo.critic) == ("full", "model")
    assert (config.model.model_name_or_path, config.reward.reward_model) == ("sft_model/", "rm_model/")
    assert config.data.cutoff_len == 768 - 64 - 3
    assert config.generation.max_new_tokens == 64
    assert config.train.per_device_train_batch_size == 16
    assert config.online.ppo_buffer_size == 20  # 20 batches of 16 before an update
    assert config.train.max_steps == 3 * 80 // 20
    assert config.online.ppo_epochs == 2
    assert config.train.save_steps == 4  # 80 batches an episode
    assert (config.online.kl_coef, config.online.ppo_target) == (0.02, 0)
    assert config.generation.repetition_penalty == 1.4
    assert (config.online.reward_clip, config.train.adam_epsilon, config.train.seed) == (5.0, 1e-5, 2048)
    assert config.ppo.clip_grad_per_role
    assert found.lost == [("device: 0", "start with CUDA_VISIBLE_DEVICES=0, or empty for the CPU")]


def test_flags_of_the_script_win_over_its_defaults():
    words = f"{THIRD} --num_return_sequences 4 --update_timesteps 10 --lam 0.9 --ppo_epoch=3 --save_strategy no"
    config = resolved(converted([words]))
    assert config.train.per_device_train_batch_size == 64
    assert config.online.ppo_buffer_size == 10
    assert config.train.max_steps == 24
    assert (config.ppo.gae_lambda, config.online.ppo_epochs) == (0.9, 3)
    assert config.train.save_strategy == "no"


def test_flags_of_another_script_go_by_their_names():
    found = converted(["sft.py", "--model_path", "m", "--lr", "1e-4", "--epochs", "2", "--lora_r", "4", "--fancy", "1"])
    assert found.values["learning_rate"] == 1e-4
    assert found.values["num_train_epochs"] == 2
    assert found.values["lora_rank"] == 4
    assert found.notes["learning_rate"] == "was lr"
    assert lost(found) == {"fancy"}


def test_flags_that_may_mean_something_else_are_not_guessed():
    found = converted(
        ["train.py", "--batch_size", "32", "--global_batch_size", "64", "--target_kl", "6", "--seed", "3"]
    )
    assert found.values == {"per_device_train_batch_size": 32, "seed": 3}
    assert lost(found) == {"global_batch_size", "target_kl"}


@pytest.mark.parametrize(
    "words",
    [
        "accelerate launch --num_processes 2 trl dpo --model_name_or_path m --dataset_name d",
        "python examples/trl/scripts/dpo.py --model_name_or_path m --dataset_name d",
        "torchrun --nproc_per_node 2 trl/scripts/dpo.py --model_name_or_path m --dataset_name d",
    ],
)
def test_a_launcher_may_stand_before(words):
    found = converted(shlex.split(words))
    assert (found.values["stage"], found.values["dataset"], found.values["model_name_or_path"]) == ("dpo", ("d",), "m")


def test_what_has_several_lines_stands_in_a_comment_on_one(tmp_path):
    found = trl(tmp_path, "sft", 'tools: "x\\ny"\nreport_to: "foo\\nbar"\n')
    assert yaml.safe_load(found.text())["stage"] == "sft"
    assert "x y" in found.text()


@pytest.mark.parametrize(
    ("text", "trains"),
    [
        ("completion_only_loss: true\nassistant_only_loss: false\n", False),
        ("assistant_only_loss: false\ncompletion_only_loss: true\n", False),
        ("assistant_only_loss: false\n", True),
        ("", False),
    ],
)
def test_prompts_train_where_neither_key_leaves_them_out(tmp_path, text, trains):
    assert resolved(trl(tmp_path, "sft", text)).data.train_on_prompt is trains


def test_defaults_that_differ_are_written_out(tmp_path):
    ppo = trl(tmp_path, "ppo", "reward_model_path: c\n")
    assert (ppo.values["temperature"], ppo.notes["temperature"]) == (0.7, "TRL's default of temperature")
    assert trl(tmp_path, "cpo", "loss_type: simpo\n").values["pref_ftx"] == 1.0
    assert trl(tmp_path, "cpo", "loss_type: simpo\ncpo_alpha: 0.0\n").values["pref_ftx"] == 0.0
    assert lost(trl(tmp_path, "sft", "use_peft: true\nmax_length: null\n")) == {"lora_target_modules", "max_length"}


LLAMAFACTORY = """\
model_name_or_path: E:\\models\\qwen2
stage: sft
do_train: true
finetuning_type: lora
dataset: a,b
template: qwen
output_dir: out
warmup_steps: 0.1
evaluation_strategy: steps
val_size: 0.1
flash_attn: fa2
infer_dtype: bfloat16
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-6}
use_badam: true
"""


def test_a_file_of_llamafactory(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(LLAMAFACTORY, encoding="utf-8")
    found = converted([str(path)])
    config = resolved(found)
    assert config.train.warmup_ratio == 0.1
    assert config.train.eval_strategy == "steps"
    assert config.model.dtype == "bfloat16"
    assert config.model.model_name_or_path == "E:\\models\\qwen2"
    assert config.data.dataset == ("a", "b")
    assert lost(found) == {"flash_attn", "use_badam"}
    again = converted(["llamafactory-cli", "train", str(path), "learning_rate=3e-4"])
    assert resolved(again).train.learning_rate == 3e-4


def test_an_export_of_llamafactory(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("model_name_or_path: m\nadapter_name_or_path: a\ntemplate: qwen\nexport_dir: e\nexport_size: 2\n")
    found = converted(["llamafactory-cli", "export", str(path)])
    assert resolved(found, "export").export.export_size == 2


def trl(tmp_path, method, text="", *flags):
    path = tmp_path / "trl.yaml"
    path.write_text(text or "{}\n", encoding="utf-8")
    base = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
    return converted(["trl", method, "--config", str(path), *base, *flags])


def test_sft_of_trl(tmp_path):
    text = "max_length: 512\nuse_peft: true\nlora_r: 32\nlora_target_modules: [q_proj, v_proj]\nloss_type: dft\n"
    found = trl(tmp_path, "sft", text + "packing: true\nassistant_only_loss: false\ndataset_train_split: train[:5]\n")
    config = resolved(found)
    assert (config.data.cutoff_len, config.method.lora_rank, config.method.lora_alpha) == (512, 32, 32)
    assert config.method.lora_dropout == 0.05
    assert config.method.lora_target == ("q_proj", "v_proj")
    assert config.sft.use_dft_loss
    assert config.data.train_on_prompt
    assert config.train.learning_rate == 2e-5
    assert config.data.split == "train[:5]"
    assert lost(found) == {"packing"}


def test_without_peft_all_weights_train(tmp_path):
    assert resolved(trl(tmp_path, "sft")).method.finetuning_type == "full"


@pytest.mark.parametrize(
    ("loss", "pref_loss", "gone"),
    [("ipo", "ipo", set()), ("apo_zero", "apo_zero", set()), ("discopop", "sigmoid", {"loss_type"})],
)
def test_dpo_of_trl(tmp_path, loss, pref_loss, gone):
    found = trl(tmp_path, "dpo", "rpo_alpha: 0.5\nmax_prompt_length: 128\n", "--loss_type", loss, "--beta", "0.3")
    config = resolved(found)
    assert (config.method.stage, config.preference.pref_loss, config.preference.pref_beta) == ("dpo", pref_loss, 0.3)
    assert config.preference.pref_ftx == 0.5
    assert (config.data.cutoff_len, config.train.learning_rate) == (1024, 1e-6)
    assert lost(found) == {"max_prompt_length", *gone}


@pytest.mark.parametrize(
    ("loss", "average"), [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "budget")]
)
def test_grpo_of_trl(tmp_path, loss, average):
    text = (
        "gradient_accumulation_steps: 2\nsteps_per_generation: 4\nper_device_train_batch_size: 16\n"
        "scale_rewards: false\nreward_funcs: [rewards.think]\nuse_vllm: true\n"
        "max_prompt_length: 300\nepsilon_high: 0.28\nbeta: 0.04\n"
    )
    found = trl(tmp_path, "grpo", text, "--loss_type", loss, "--num_iterations", "2")
    config = resolved(found)
    assert config.online.loss_average == average
    assert config.online.kl_coef == 0.04
    assert (config.generation.num_return_sequences, config.generation.max_new_tokens) == (8, 256)
    assert (config.online.ppo_buffer_size, config.online.ppo_epochs) == (2, 2)
    assert (config.online.scale_rewards, config.online.clip_range_high) == ("none", 0.28)
    assert config.reward.reward_funcs == ("rewards.py:think",)
    assert config.data.cutoff_len == 300
    assert lost(found) == {"use_vllm"}


def test_other_methods_of_trl(tmp_path):
    reward = resolved(trl(tmp_path, "reward", "center_rewards_coefficient: 0.01\n"))
    assert (reward.method.stage, reward.reward_model.center_rewards_coef) == ("rm", 0.01)
    kto = resolved(trl(tmp_path, "kto", "undesirable_weight: 1.5\nprecompute_ref_log_probs: true\n"))
    assert (kto.method.stage, kto.preference.kto_rejected_weight) == ("kto", 1.5)
    rloo = resolved(trl(tmp_path, "rloo", "reward_funcs: r.f\nreward_clip_range: [-3, 3]\n"))
    assert (rloo.online.kl_coef, rloo.online.reward_clip, rloo.generation.num_return_sequences) == (0.05, 3, 2)
    ppo = resolved(trl(tmp_path, "ppo", "reward_model_path: c\ntotal_episodes: 640\nvf_coef: 0.2\n"))
    assert (ppo.reward.reward_classifier, ppo.train.max_steps, ppo.ppo.value_coef) == ("c", 80, 0.2)
    assert ppo.online.ppo_target is None
    simpo = resolved(trl(tmp_path, "cpo", "loss_type: simpo\nsimpo_gamma: 0.7\nbeta: 2.0\n"))
    assert (simpo.preference.pref_loss, simpo.preference.simpo_gamma) == ("simpo", 0.7)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to convert"),
        (["trl", "xpo"], "not one of TRL's methods"),
        (["trl"], "name one of TRL's methods"),
        (["make", "coffee"], "no set-up that is known"),
        (["gone.yaml"], "gone.yaml: no such file"),
        (["train.py", "fast"], "`fast` belongs to no flag"),
        (
            ["train.py", "--max_len", "10", "--query_len", "20"],
            "`max_len` of 10 leaves -13 tokens for a text beside a query_len of 20",
        ),
        (["train.py", "--max_len", "abc", "--query_len", "20"], "`max_len` must be a whole number, not 'abc'"),
        (["trl", "grpo", "--steps_per_generation", "abc"], "`steps_per_generation` must be a whole number"),
        (["trl", "ppo", "--total_episodes", "1e"], "`total_episodes` must be a whole number"),
    ],
)
def test_what_is_no_set_up(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        converted(words)
    assert part in str(caught.value)


def test_a_file_of_trl_must_name_its_method(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("num_generations: 4\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"trl grpo --config .*x\.yaml"):
        converted([str(path)])


def test_flags_in_all_their_forms():
    words = ["--a", "1", "--b=x y", "--c", "--d", "1", "2", "e=3", "--dash-ed", "no"]
    assert flags_of(words) == {"a": 1, "b": "x y", "c": True, "d": [1, 2], "e": 3, "dash_ed": False}


def test_the_file_can_be_read_again_with_its_comments(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(converted(shlex.split(THIRD)).text(), encoding="utf-8")
    assert "# From train.py and its flags, by `posttrain config convert`." in path.read_text("utf-8")
    assert "# iterations: num_episodes x max_timesteps / update_timesteps" in path.read_text("utf-8")
    assert read_document(path).data["ppo_buffer_size"] == 20
