"""Files, mappings and overrides to a RunConfig; every message names the place and the fix."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config import KEYS, load_config, stage_defaults
from posttrain.config.foreign import FOREIGN
from posttrain.config.renamed import ELSEWHERE, RENAMED
from posttrain.config.translate import TRANSLATED
from posttrain.errors import UserError

MINIMAL = {"model_name_or_path": "m", "dataset": "d", "output_dir": "out"}


def failure(source, overrides=(), command="train"):
    """The message of the UserError that loading this raises."""
    with pytest.raises(UserError) as caught:
        load_config(source, overrides, command=command)
    return str(caught.value)


def written(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def test_types_are_read_from_yaml_and_text():
    config = load_config(
        {
            **MINIMAL,
            "dataset": "a, b",
            "learning_rate": "1e-5",
            "max_steps": "1e2",
            "seed": 3.0,
            "lora_target": ["q", "v"],
        },
        ["adapter_name_or_path=x,y", "--bf16=true", "top_k=0", "default_system=Be brief: one word", "ppo_target=null"],
    )
    assert config.data.dataset == ("a", "b")
    assert config.train.learning_rate == 1e-5
    assert config.train.max_steps == 100
    assert config.train.seed == 3
    assert isinstance(config.train.seed, int)
    assert config.method.lora_target == ("q", "v")
    assert config.model.adapter_name_or_path == ("x", "y")
    assert config.train.bf16 is True
    assert config.generation.top_k == 0
    assert config.data.default_system == "Be brief: one word"
    assert config.online.ppo_target is None
    assert config.sources["top_k"] == "command line"


def test_overrides_win_and_sources_name_lines(tmp_path):
    path = written(tmp_path, "model_name_or_path: m\ndataset: d\noutput_dir: o\nlora_rank: 4\nseed: 1\n")
    config = load_config(path, ["lora_rank=16"])
    assert config.method.lora_rank == 16
    assert config.method.lora_alpha == 32
    assert config.sources["lora_rank"] == "command line"
    assert config.sources["seed"] == f"{path}, line 5"
    assert "lora_dropout" not in config.sources


@pytest.mark.parametrize("written_as", ["no", "'no'", "False"])
def test_a_bare_no_is_a_strategy_and_not_a_truth_value(tmp_path, written_as):
    config = load_config(
        written(tmp_path, f"model_name_or_path: m\ndataset: d\noutput_dir: o\nsave_strategy: {written_as}\n")
    )
    assert config.train.save_strategy == "no"


def test_text_that_yaml_reads_as_something_else_stays_text(tmp_path):
    lines = ["model_name_or_path: 2024", "dataset: d", "output_dir: E:\\runs\\new", "run_name: 2024-06-26"]
    text = "\n".join([*lines, "resume_from_checkpoint: true"])
    config = load_config(written(tmp_path, text))
    assert config.model.model_name_or_path == "2024"
    assert config.train.output_dir == "E:\\runs\\new"
    assert config.trackers.run_name == "2024-06-26"
    assert config.train.resume_from_checkpoint is True


def test_home_is_expanded_only_in_paths():
    config = load_config({**MINIMAL, "output_dir": "~/runs", "adapter_name_or_path": "~/a,b", "default_system": "~ hi"})
    assert config.train.output_dir == str(Path("~/runs").expanduser())
    assert config.model.adapter_name_or_path[0] == str(Path("~/a").expanduser())
    assert config.data.default_system == "~ hi"


@pytest.mark.parametrize("text", ['"E:\\new"', '"E:\\PyCharm"', '"C:\\table"'])
def test_a_windows_path_in_double_quotes_is_noticed(tmp_path, text):
    path = written(tmp_path, f"model_name_or_path: {text}\ndataset: d\noutput_dir: o\n")
    assert "line 1: `model_name_or_path` holds a control character" in failure(path)


def test_json_and_yaml_give_the_same(tmp_path):
    as_json = written(
        tmp_path, '{"model_name_or_path": "m", "dataset": ["d"], "output_dir": "o", "packing": null}', "c.json"
    )
    as_yaml = written(tmp_path, "model_name_or_path: m\ndataset: d\noutput_dir: o\npacking:\n")
    assert load_config(as_json) == load_config(as_yaml)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"learning_rat": 1}, ["unknown key `learning_rat`", "did you mean `learning_rate`?"]),
        ({"lora-rank": 1}, ["did you mean `lora_rank`?"]),
        ({"evaluation_stratgy": "no"}, ["did you mean `eval_strategy`?"]),
        ({"zzzz": 1}, ["unknown key `zzzz`", "docs/configuration.md"]),
        ({"init_kl_coef": 0.1}, ["`init_kl_coef` is not a key here", "`kl_coef`"]),
        ({"learning_rate": "fast"}, ["`learning_rate` must be a number, not 'fast'"]),
        ({"learning_rate": float("nan")}, ["`learning_rate` must be a number"]),
        ({"max_steps": 1.5}, ["`max_steps` must be a whole number, not 1.5"]),
        ({"plot_loss": "maybe"}, ["`plot_loss` must be true or false, not 'maybe'"]),
        ({"stage": "stf"}, ["must be one of pt, sft, rm, dpo, kto, ppo, ", "not 'stf'; did you mean sft?"]),
        ({"lora_rank": 0}, ["`lora_rank` must be at least 1, not 0"]),
        ({"temperature": 0}, ["`temperature` must be above 0"]),
        ({"top_p": 1.5}, ["`top_p` must be at most 1"]),
        ({"lora_dropout": 1.0}, ["`lora_dropout` must be below 1"]),
        ({"lora_rank": None}, ["`lora_rank` is empty", "remove the line"]),
        ({"lora_rank": {"a": 1}}, ["nested block", "one level"]),
        ({"run_name": True}, ["must be text, not true", "quotes"]),
        ({"lora_target": [["a"]]}, ["names, separated by commas"]),
    ],
)
def test_a_wrong_line_is_named_with_its_fix(change, parts):
    message = failure({**MINIMAL, **change})
    assert message.startswith("configuration: ")
    for part in parts:
        assert part in message


def test_all_mistakes_come_in_one_message(tmp_path):
    path = written(tmp_path, "model_name_or_path: m\nlora_rnk: 4\nseed: x\nresize_vocab: true\n")
    message = failure(path)
    assert message.splitlines()[0] == f"{path}: 3 things to correct:"
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == ["  - line 2", "  - line 3", "  - line 4"]


def test_missing_keys_are_asked_for_by_command():
    assert "`model_name_or_path` is missing" in failure({})
    message = failure({"model_name_or_path": "m"})
    assert "`output_dir` is missing" in message
    assert "`dataset` is missing" in message
    assert "`export_dir` is missing" in failure({"model_name_or_path": "m"}, command="export")
    assert load_config({"model_name_or_path": "m"}, command="chat").data.dataset == ()
    assert load_config({"model_name_or_path": "m"}, command="generate").train.output_dir == ""


@pytest.mark.parametrize(("stage", "task"), [("pt", "perplexity"), ("sft", "loss"), ("rm", "reward")])
def test_the_task_of_an_evaluation_goes_by_stage(stage, task):
    assert load_config({"model_name_or_path": "m", "stage": stage}, command="eval").evaluate.task == task


def test_a_training_file_serves_other_commands():
    training = {**MINIMAL, "stage": "ppo", "learning_rate": 1e-5, "eval_strategy": "steps", "export_dir": "e"}
    for command in ("export", "chat", "generate", "eval"):
        assert load_config(training, command=command).train.learning_rate == 1e-5


def test_overrides_must_be_pairs():
    assert "write it as key=value" in failure(MINIMAL, ["max_steps"])
    assert "write it as key=value" in failure(MINIMAL, ["=3"])
    assert failure(MINIMAL, ["max_step=3"]) == "command line: unknown key `max_step`; did you mean `max_steps`?"


def test_stage_defaults_yield_to_the_file():
    ppo = {**MINIMAL, "stage": "ppo", "reward_model": "r"}
    config = load_config(ppo)
    assert (config.generation.temperature, config.generation.top_p, config.generation.top_k) == (1.0, 1.0, 0)
    assert stage_defaults("ppo")["top_k"] == 0
    assert load_config({**ppo, "top_p": 0.9}).generation.top_p == 0.9
    assert load_config(MINIMAL).generation.top_p == 0.7


def test_derived_values():
    config = load_config({**MINIMAL, "seed": 7, "eval_strategy": "steps", "val_size": 0.1, "logging_steps": 3})
    assert config.method.lora_alpha == 16
    assert config.train.data_seed == 7
    assert config.train.eval_steps == 3
    assert config.train.metric_for_best_model == "eval_loss"
    assert config.train.greater_is_better is False
    assert config.train.do_train is True
    assert config.data.packing is False
    assert load_config({**MINIMAL, "stage": "pt"}).data.packing is True
    assert load_config({**MINIMAL, "neat_packing": True}).data.packing is True
    assert load_config({**MINIMAL, "do_eval": True, "val_size": 5}, command="eval").train.do_train is False
    best = load_config({**MINIMAL, "metric_for_best_model": "accuracy"}).train
    assert (best.metric_for_best_model, best.greater_is_better) == ("eval_accuracy", True)


VALUES = {
    "stage": st.sampled_from(["pt", "sft", "rm"]),
    "learning_rate": st.floats(1e-9, 1),
    "adam_epsilon": st.floats(1e-12, 1e-3),
    "lora_alpha": st.none() | st.integers(1, 99),
    "lora_target": st.lists(st.text("abc,:#' 图", min_size=1).map(str.strip).filter(bool), min_size=1),
    "default_system": st.none() | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    "report_to": st.sampled_from(["none", "all", "tensorboard", ["wandb"]]),
    "warmup_steps": st.integers(0, 9) | st.floats(0.01, 0.99),
    "save_strategy": st.sampled_from(["no", "steps", False]),
    "resume_from_checkpoint": st.sampled_from([True, False, "runs/checkpoint-3", None]),
    "ppo_target": st.none() | st.floats(0, 9),
    "output_dir": st.sampled_from(["~/a", "E:\\x", "相对/路径"]),
    "metric_for_best_model": st.sampled_from([None, "loss", "eval_accuracy"]),
}


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_the_resolved_configuration_loads_to_itself(values):
    config = load_config({**MINIMAL, **values})
    text = yaml.safe_dump(config.to_flat(), allow_unicode=True)
    again = load_config(yaml.safe_load(text))
    assert again == config
    assert not any("read as" in warning or "is called" in warning for warning in again.warnings)


def test_the_resolved_ppo_configuration_loads_to_itself():
    config = load_config({**MINIMAL, "stage": "ppo", "reward_model": "r", "optim": "adamw_8bit"})
    again = load_config(yaml.safe_load(yaml.safe_dump(config.to_flat())))
    assert again == config
    assert again.warnings == ()
    assert set(config.to_flat()) == set(KEYS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.seed = 1


def llamafactory_keys() -> list[str]:
    """Every key of LLaMA-Factory 0.8.2 to 0.9.5 and of the training arguments it takes over."""
    return (Path(__file__).parent / "llamafactory_keys.txt").read_text(encoding="utf-8").split()


def test_every_llamafactory_key_has_exactly_one_fate():
    tables = [set(KEYS), set(RENAMED), set(FOREIGN), set(ELSEWHERE), set(TRANSLATED) - set(KEYS)]
    for key in llamafactory_keys():
        assert sum(key in table for table in tables) == 1, key


@pytest.mark.parametrize("key", [key for key in llamafactory_keys() if key not in KEYS])
def test_no_llamafactory_key_is_silent_or_unknown(key):
    told: tuple[str, ...]
    try:
        told = load_config({**MINIMAL, key: 1}).warnings
    except UserError as error:
        told = (str(error),)
    assert any(f"`{key}" in sentence for sentence in told)
    assert not any("unknown" in sentence for sentence in told)


def test_a_refused_key_may_ask_for_nothing():
    for value in (None, False, "none", 0):
        config = load_config({**MINIMAL, "label_smoothing_factor": value})
        assert len(config.warnings) == 1
        assert "`label_smoothing_factor: " in config.warnings[0]
    assert "is not supported" in failure({**MINIMAL, "label_smoothing_factor": 0.1})


def test_notes_do_not_repeat_secrets():
    config = load_config({**MINIMAL, "hf_hub_token": "hf_secret"})
    assert "HF_TOKEN" in config.warnings[0]
    assert "hf_secret" not in str(config)


def test_a_renamed_key_yields_to_the_new_one():
    config = load_config({**MINIMAL, "evaluation_strategy": "epoch", "eval_strategy": "no"})
    assert config.train.eval_strategy == "no"
    assert config.warnings == ("`evaluation_strategy` is ignored: `eval_strategy` is set too.",)
    message = failure({**MINIMAL, "evaluation_strategy": "stepz"})
    assert "`evaluation_strategy` must be one of no, steps, epoch" in message


@pytest.mark.parametrize(
    ("given_as", "key", "value"),
    [
        ({"warmup_steps": 0.1}, "warmup_ratio", 0.1),
        ({"warmup_steps": "0.1"}, "warmup_ratio", 0.1),
        ({"pure_bf16": True}, "bf16", True),
        ({"max_length": 300}, "max_new_tokens", 300),
        ({"max_length": 300, "max_new_tokens": 20}, "max_new_tokens", 20),
        ({"generation_max_length": 300}, "max_new_tokens", 300),
        ({"optim": "adamw_hf"}, "optim", "adamw_torch"),
        ({"adafactor": True}, "optim", "adafactor"),
        ({"report_to": "comet_ml,tensorboard"}, "report_to", ("tensorboard",)),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length", True),
        ({"train_sampling_strategy": "sequential"}, "disable_shuffling", True),
        ({"infer_dtype": "bfloat16"}, "dtype", "bfloat16"),
    ],
)
def test_values_from_elsewhere_are_read_with_a_note(given_as, key, value):
    config = load_config({**MINIMAL, **given_as})
    assert config.value(key) == value
    assert len(config.warnings) == 1
    assert f"`{next(iter(given_as))}" in config.warnings[0]


def test_quantisation_under_other_names():
    config = load_config({**MINIMAL, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False})
    assert (config.model.quantization_bit, config.model.quantization_type) == (4, "fp4")
    assert config.model.double_quantization is False
    assert load_config({**MINIMAL, "load_in_8bit": True}).model.quantization_bit == 8
    assert load_config({**MINIMAL, "load_in_8bit": False}).model.quantization_bit is None
    assert load_config({**MINIMAL, "quantization_method": "BNB"}).model.quantization_method == "bnb"
    exported = load_config({**MINIMAL, "quantization_bit": 4, "export_dir": "merged"}, command="export")
    assert "ignored by export" in exported.warnings[0]


def test_options_of_a_schedule_are_a_block_or_json():
    polynomial = {**MINIMAL, "lr_scheduler_type": "polynomial"}
    as_block = load_config({**polynomial, "lr_scheduler_kwargs": {"lr_end": "1e-6", "power": 2}})
    as_text = load_config({**polynomial, "lr_scheduler_kwargs": '{"power": 2, "lr_end": 1e-6}'})
    assert json.loads(as_block.train.lr_scheduler_kwargs) == {"lr_end": 1e-6, "power": 2}
    assert load_config(as_text.to_flat()) == as_text
    assert load_config({**MINIMAL, "lr_scheduler_kwargs": {}}).train.lr_scheduler_kwargs is None


def test_reward_adapters_on_a_trunk_are_the_reward_model():
    ppo = {**MINIMAL, "stage": "ppo", "reward_model": "base", "reward_model_adapters": "rm"}
    config = load_config(ppo)
    assert config.reward.reward_model == "rm"
    assert "`reward_model: base` is taken to be the base" in config.warnings[0]
    assert "`reward_model_adapters: rm` is read as `reward_model: rm`" in config.warnings[1]
    assert load_config({**ppo, "reward_model_adapters": None}).reward.reward_model == "base"


def test_a_key_without_effect_says_so():
    (warning,) = load_config({**MINIMAL, "dataloader_num_workers": 4}).warnings
    assert warning.startswith("`dataloader_num_workers: 4` changes nothing: batches are made in the run")
    assert load_config({**MINIMAL, "dataloader_num_workers": 0}).warnings == ()


def test_reports_can_be_switched_off():
    assert load_config({**MINIMAL, "report_to": "none"}).trackers.report_to == ()
    assert load_config({**MINIMAL, "report_to": False}).warnings == ()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "apo_zero is its successor"),
        ({"finetuning_type": "oft"}, "use lora"),
        ({"lr_scheduler_type": "cosine_warmup_with_min_lr"}, "cosine_with_min_lr is the same curve"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "early_stopping_steps"),
        ({"stage": "dpo", "pref_bco_weight": 0.5}, "nca_pair"),
        ({"stage": "dpo", "ld_alpha": 0.5}, "simpo"),
        ({"stage": "ppo", "reward_model": "r", "ref_model": "m2"}, "the actor as it starts"),
        ({"stage": "dpo", "pref_loss": "simpo", "ref_model": "m2"}, "has no reference"),
        ({"reward_model_adapters": "a,b"}, "give its own folder"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "must give min_lr or min_lr_rate"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "`power`, which lr_scheduler_type: linear does not take"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"power": "x"}'}, "`power: x`, which must be a"),
        ({"lr_scheduler_kwargs": "power=2"}, "is not JSON"),
        ({"lr_scheduler_kwargs": "[1]"}, "a block of names and numbers"),
        ({"eval_delay": 5}, "`eval_delay` puts off evaluations"),
        ({"optim": "galore_adamw"}, "`optim: galore_adamw` is not supported: it projects gradients"),
        ({"optim": "adamish"}, "use one of adamw_torch, adamw_torch_fused, sgd"),
        ({"num_beams": 4}, "`num_beams: 4` is not supported"),
        ({"additional_target": "embed_tokens"}, "finetuning_type: freeze"),
        ({"quantization_bit": 3}, "bitsandbytes has 4 and 8 bits"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "(quantization_method: bnb)"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "quantised weights cannot train"),
        ({"ref_model_quantization_bit": 4}, "on the same base in memory"),
        ({"device_map": "balanced"}, "write device_map: auto"),
        ({"device_map": "somewhere"}, "is no device"),
        ({"task": "mmlu_test"}, "lm-eval"),
        ({"deepspeed": "ds.json"}, "each process holds the whole model"),
    ],
)
def test_what_is_not_supported_says_what_to_do(change, part):
    assert part in failure({**MINIMAL, **change})
