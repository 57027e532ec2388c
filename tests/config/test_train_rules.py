"""The course of a run: options of schedules, metrics that fall, keys that are taken and change nothing."""

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError

MINIMAL = {"model_name_or_path": "m", "stage": "sft", "dataset": "d", "output_dir": "o", "report_to": "none"}


@pytest.mark.parametrize(
    ("schedule", "options", "words"),
    [
        ("cosine_with_min_lr", {"min_lr": 1e-2}, r"`min_lr: 0\.01`, more than `learning_rate: 0\.001`"),
        ("polynomial", {"lr_end": 1.0}, r"`lr_end: 1\.0`, more than `learning_rate"),
        ("cosine_with_min_lr", {"min_lr_rate": 1.5}, r"`min_lr_rate: 1\.5`, a share .* at most 1"),
        ("cosine", {"num_cycles": None}, r"`num_cycles` without a value; leave it out to take 0\.5"),
        ("cosine_with_min_lr", {}, "must give min_lr or min_lr_rate"),
    ],
)
@pytest.mark.parametrize("command", ["train", "loop"])
def test_options_that_a_schedule_cannot_follow(schedule, options, words, command):
    keys = {**MINIMAL, "learning_rate": 1e-3, "lr_scheduler_type": schedule, "lr_scheduler_kwargs": options}
    with pytest.raises(UserError, match=words):
        load_config({**keys, "stage": "ppo", "reward_model": "r"} if command == "loop" else keys, command=command)


def test_dynamic_fine_tuning_is_judged_by_the_plain_loss():
    train = load_config({**MINIMAL, "use_dft_loss": True}).train
    assert (train.metric_for_best_model, train.greater_is_better) == ("eval_nll", False)
    assert load_config(MINIMAL).train.metric_for_best_model == "eval_loss"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pissa_iter": 4}, "it belongs to `pissa_init: true`"),
        ({"loraplus_lr_embedding": 1e-5}, "it belongs to `loraplus_lr_ratio`"),
        ({"double_quantization": False}, "`quantization_bit` is 4 or 8"),
        ({"swanlab_project": "fruits"}, "where `report_to` names it"),
        ({"hub_model_id": "me/x"}, "where `push_to_hub: true` is set"),
        ({"export_hub_model_id": "me/x"}, "for `posttrain export`"),
        ({"mix_strategy": "interleave_under"}, "there is one dataset"),
        ({"warmup_steps": 5, "lr_scheduler_type": "constant"}, "has no warm-up"),
        ({"overwrite_cache": True, "tokenized_path": "kept"}, "remove that folder"),
        ({"dataloader_num_workers": 4}, "batches are made in the run itself"),
        ({"buffer_size": 10}, "it belongs to `streaming: true`"),
        ({"num_train_epochs": 7, "streaming": True, "max_steps": 3}, "read for `max_steps`"),
        ({"train_after_end_of_turn": True, "stage": "rm"}, "for stages sft, dpo and kto"),
        ({"prompt_template": "{prompt}", "stage": "pt"}, "documents as they are"),
        ({"truncation_side": "left", "stage": "pt"}, "nothing is cut there"),
        ({"adam_beta1": 0.8, "optim": "sgd"}, "set them in `optim_args`"),
        ({"adam_epsilon": 1e-6, "optim": "lion_8bit"}, "set it in `optim_args`"),
    ],
)
def test_a_key_that_changes_nothing_says_so(keys, words):
    key = next(iter(keys))
    said = [sentence for sentence in load_config({**MINIMAL, **keys}).warnings if sentence.startswith(f"`{key}")]
    assert len(said) == 1
    assert "changes nothing" in said[0]
    assert words in said[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"double_quantization": True},
        {"quantization_bit": 4, "double_quantization": False},
        {"pissa_init": True, "pissa_iter": 4},
        {"use_swanlab": True, "swanlab_project": "fruits"},
        {"dataset": "a,b", "mix_strategy": "interleave_under"},
    ],
)
def test_a_key_that_has_its_effect_or_its_default_is_no_matter(keys):
    assert not [sentence for sentence in load_config({**MINIMAL, **keys}).warnings if "changes nothing" in sentence]
