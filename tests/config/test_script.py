"""Flags of the PPO script as keys of a file and on the command line: counted, clashing, misspelt, out of place."""

import pytest
import yaml

from posttrain.config import load_config
from posttrain.config.script import ALIASES, FLAGS, IMPLIED, SCRIPT
from posttrain.errors import UserError

RECIPE = """
stage: ppo
finetuning_type: full
critic: model
train_file_path: data/ppo_train.json
ori_model_path: sft_model
reward_model_path: rm_model
output_dir: ppo_model
max_len: 300
query_len: 32
batch_size: 4
num_episodes: 2
max_timesteps: 30
update_timesteps: 10
kl_coef: 0.02
ppo_epoch: 2
policy_clip_eps: 0.1
value_clip_eps: 0.3
repetition_penalty: 1.4
reward_clip_eps: 5.0
lam: 0.9
"""


@pytest.fixture
def load(tmp_path):
    def loaded(*overrides, more="", command="train"):
        path = tmp_path / "ppo.yaml"
        path.write_text(RECIPE + more, encoding="utf-8")
        return load_config(path, overrides, command=command)

    return loaded


def test_a_file_may_use_the_scripts_names(load):
    config = load()
    assert config.data.dataset == ("data/ppo_train.json",)
    assert (config.model.model_name_or_path, config.reward.reward_model) == ("sft_model", "rm_model")
    assert config.data.cutoff_len == 300 - 32 - 3
    assert config.data.cut_prompts
    assert config.generation.max_new_tokens == 32
    assert (config.train.per_device_train_batch_size, config.online.ppo_buffer_size) == (4, 10)
    assert (config.train.max_steps, config.train.save_steps) == (6, 3)
    assert (config.online.ppo_epochs, config.online.clip_range, config.ppo.clip_range_value) == (2, 0.1, 0.3)
    assert (config.online.reward_clip, config.ppo.gae_lambda) == (5.0, 0.9)
    note = config.warnings[0]
    assert note.startswith("flags of a script are read as keys: ")
    for part in ("`max_len` as `cutoff_len: 265`", "`lam` as `gae_lambda: 0.9`", "`max_steps: 6`"):
        assert part in note
    assert config.sources["cutoff_len"].endswith("line 9")


def test_the_command_line_wins_whichever_name_it_uses(load):
    config = load("max_len=100", "batch_size=2", "num_return_sequences=3", "max_steps=7", "gae_lambda=0.5")
    assert config.data.cutoff_len == 100 - 32 - 3
    assert config.train.per_device_train_batch_size == 6
    assert config.train.max_steps == 7
    assert config.ppo.gae_lambda == 0.5
    assert any("`lam` is ignored: `gae_lambda` is set too" in note for note in config.warnings)
    assert load("lam=0.7", more="gae_lambda: 0.5\n").ppo.gae_lambda == 0.7


def test_a_key_beside_the_flag_wins_with_a_note(load):
    config = load(more="max_steps: 3\nsave_steps: 1\n")
    assert (config.train.max_steps, config.train.save_steps) == (3, 1)
    assert sum("is ignored" in note for note in config.warnings) == 2


def test_no_checkpoints_where_none_are_asked_for(load):
    assert load(more='save_strategy: "no"\n').train.save_steps == 500


def test_counts_that_are_left_out_are_the_scripts():
    config = load_config(
        {"stage": "ppo", "model_path": "m", "reward_model": "r", "output_dir": "o", "dataset": "d", "num_episodes": 2}
    )
    assert config.train.max_steps == 2 * 80 // 20
    assert config.online.ppo_buffer_size == 20


def test_in_other_stages_max_len_is_text_and_answer():
    keys = {"model_path": "m", "dataset": "d", "output_dir": "o", "max_len": 300, "batch_size": 3, "num_episodes": 2}
    config = load_config({**keys, "stage": "sft"})
    assert (config.data.cutoff_len, config.train.per_device_train_batch_size) == (300, 3)
    assert not config.data.cut_prompts
    assert "`num_episodes` is ignored: only stages that sample count episodes." in config.warnings


def test_prediction_takes_the_same_names():
    config = load_config({"model_path": "ppo_model", "device": 0, "max_len": 768, "query_len": 64}, command="generate")
    assert config.model.model_name_or_path == "ppo_model"
    assert (config.data.cutoff_len, config.generation.max_new_tokens) == (701, 64)
    assert any("CUDA_VISIBLE_DEVICES=0" in note for note in config.warnings)


def test_device_minus_one_is_the_cpu():
    config = load_config({"model_path": "m", "device": -1}, command="chat")
    assert config.model.device_map == "cpu"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("max_len=abc", "command line: `max_len` must be a whole number, not 'abc'."),
        ("max_len=40", "command line: `max_len` of 40 leaves 5 tokens"),
        ("update_timesteps=0", "command line: `update_timesteps` must be at least 1, not 0."),
        ("query_len=long", "line 10: `query_len`|command line: `query_len` must be a whole number"),
        ("lam=2", "command line: `lam`|`gae_lambda` must be at most 1"),
        ("polcy_clip_eps=0.2", "unknown key `polcy_clip_eps`; did you mean `policy_clip_eps`?"),
    ],
)
def test_mistakes_name_the_flag(load, more, message):
    if more == "max_len=40":
        assert load(more).data.cutoff_len == 5  # little, but a prompt
        more, message = (
            "max_len=38",
            "command line: `max_len` of 38 leaves 3 tokens for a text beside a query_len of 32",
        )
    with pytest.raises(UserError) as error:
        load(more)
    assert any(part in str(error.value) for part in message.split("|"))


def test_every_flag_of_the_script_is_a_key_or_stands_for_one():
    from posttrain.config.run import KEYS

    assert {flag for flag in SCRIPT if flag not in KEYS and flag not in FLAGS} == {"batch_size"}
    assert not FLAGS & set(KEYS)
    assert set(ALIASES.values()) <= set(KEYS)
    assert set(IMPLIED) <= set(KEYS)
    assert yaml.safe_load(yaml.safe_dump({**SCRIPT, **IMPLIED}))
