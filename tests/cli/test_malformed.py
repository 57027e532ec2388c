"""Malformed configurations, overrides and pipelines: one message that names file, line, key and fix; status 2."""

import pytest

from posttrain.cli import main

HEAD = "model_name_or_path: {base}\nstage: sft\ndataset: data/sft.json\noutput_dir: run\n"

# name -> (text of run.yaml behind HEAD, or bytes of the whole file; further arguments; parts of the message)
FILES = {
    "unknown key": (
        "learning_rte: 1e-4\n",
        (),
        ["run.yaml, line 5", "`learning_rte`", "did you mean `learning_rate`?"],
    ),
    "number in words": (
        "learning_rate: fast\n",
        (),
        ["run.yaml, line 5", "`learning_rate` must be a number", "'fast'"],
    ),
    "half a step": ("max_steps: 1.5\n", (), ["line 5", "`max_steps` must be a whole number, not 1.5"]),
    "neither true nor false": ("plot_loss: maybe\n", (), ["line 5", "`plot_loss` must be true or false"]),
    "no such choice": ("save_strategy: step\n", (), ["line 5", "one of no, steps, epoch", "did you mean steps?"]),
    "below the limit": ("lora_rank: 0\n", (), ["line 5", "`lora_rank` must be at least 1, not 0"]),
    "above the limit": ("warmup_ratio: 2\n", (), ["line 5", "`warmup_ratio` must be at most 1"]),
    "empty value": ("lora_rank:\n", (), ["line 5", "`lora_rank` is empty", "remove the line"]),
    "truth value for text": ("run_name: yes\n", (), ["line 5", "`run_name` must be text", "put the text in quotes"]),
    "nested block": ("train:\n  seed: 3\n", (), ["line 5", "unknown key `train`"]),
    "block as value": ("seed:\n  value: 3\n", (), ["line 5", "`seed` holds a nested block", "left margin"]),
    "key twice": ("seed: 1\nseed: 2\n", (), ["run.yaml, line 6", "`seed` stands on line 5 already; keep one"]),
    "tab": ("lora_target:\n\t- q_proj\n", (), ["run.yaml, line 6", "not valid YAML", "Indent with spaces"]),
    "colon in a value": ("default_system: Answer: briefly\n", (), ["line 5", "not valid YAML", "in quotes"]),
    "escape in a path": ('cache_dir: "E:\\models"\n', (), ["line 5", "unknown escape", "single ones: 'E:\\models"]),
    "control character": (
        'cache_dir: "E:\\new"\n',
        (),
        ["line 5", "`cache_dir` holds a control character", "single ones"],
    ),
    "unclosed list": ("lora_target: [q_proj\n", (), ["run.yaml, line", "not valid YAML"]),
    "held out twice": ("val_size: 0.1\neval_dataset: d\n", (), ["line 5", "`val_size` and `eval_dataset`", "keep one"]),
    "nothing held out": ("eval_strategy: steps\n", (), ["line 5", "no rows to evaluate on", "add `val_size: 0.1`"]),
    "fraction of rows": ("val_size: 2.5\n", (), ["line 5", "a share below 1 or a whole number of rows"]),
    "both precisions": ("bf16: true\nfp16: true\n", (), ["line 6", "`bf16` and `fp16` exclude each other"]),
    "no step": ("max_steps: 0\n", (), ["line 5", "`max_steps: 0` would train nothing", "-1"]),
    "lengths crossed": ("max_new_tokens: 4\nmin_new_tokens: 9\n", (), ["line 6", "`min_new_tokens: 9` is more than"]),
    "best of none": ("load_best_model_at_end: true\n", (), ["line 5", "compares evaluations; set `eval_strategy`"]),
    "best between saves": (
        "val_size: 2\neval_strategy: steps\neval_steps: 3\nsave_steps: 4\nload_best_model_at_end: true\n",
        (),
        ["line 8", "`save_steps` (4) to be a multiple of `eval_steps` (3)"],
    ),
    "key of another program": ("max_seq_length: 9\n", (), ["line 5", "not a key here", "set by `cutoff_len`"]),
    "refused key": (
        "deepspeed: z3.json\n",
        (),
        ["line 5", "`deepspeed: 'z3.json'` is not supported", "remove the line"],
    ),
    "refused value": ("finetuning_type: oft\n", (), ["line 5", "`finetuning_type: oft` is not", "use lora"]),
    "option of another schedule": (
        "lr_scheduler_kwargs: {power: 2}\n",
        (),
        ["line 5", "`power`, which lr_scheduler_type: linear does not take"],
    ),
    "layers to freeze": (
        "finetuning_type: freeze\nfreeze_trainable_layers: 0\n",
        (),
        ["line 6", "would train no layer"],
    ),
    "two masks": ("train_on_prompt: true\nmask_history: true\n", (), ["line 6", "contradict each other; keep one"]),
    "delay of nothing": ("eval_delay: 3\n", (), ["line 5", "`eval_delay` puts off evaluations; set `eval_strategy`"]),
    "word for an override": ("", ("fast",), ["command line: `fast` is not an override", "key=value"]),
    "unknown override": ("", ("max_stps=3",), ["command line", "did you mean `max_steps`?"]),
    "override of the wrong type": ("", ("seed=x",), ["command line: `seed` must be a whole number, not 'x'"]),
    "colons of Chinese": ("stage： sft\n".encode(), (), ["run.yaml", "full-width colons"]),
    "empty file": (b"", (), ["run.yaml: expected lines of the form `key: value`, found nothing"]),
    "a list": (b"- a\n- b\n", (), ["run.yaml: expected lines of the form `key: value`, found a list"]),
    "not UTF-8": ("dataset: a\ndefault_system: 你好\n".encode("gbk"), (), ["run.yaml, line 2", "save it as UTF-8"]),
    "nothing but a seed": (b"seed: 3\n", (), ["run.yaml: `model_name_or_path` is missing", "add a line such as"]),
    "no data": (
        b"model_name_or_path: m\noutput_dir: o\n",
        (),
        ["`dataset` is missing", "add a line such as `dataset:"],
    ),
    "no folder": (b"model_name_or_path: m\ndataset: d\n", (), ["`output_dir` is missing", "output_dir: runs/sft"]),
}


def only_message(capsys, folder):
    """What was said, after the checks that every refusal has in common."""
    captured = capsys.readouterr()
    assert captured.err.count("posttrain: error: ") == 1, captured.err
    assert "Traceback" not in captured.err
    assert "Error:" not in captured.err
    assert captured.out == ""
    assert not (folder / "run").exists()
    return captured.err[captured.err.index("posttrain: error: ") :]


@pytest.mark.parametrize("cause", FILES)
def test_a_malformed_configuration(work, base, tmp_path, capsys, cause):
    work()
    content, arguments, parts = FILES[cause]
    data = content if isinstance(content, bytes) else (HEAD.format(base=base) + content).encode()
    (tmp_path / "run.yaml").write_bytes(data)
    assert main(["train", "run.yaml", *arguments]) == 2
    message = only_message(capsys, tmp_path)
    assert [part for part in parts if part not in message] == [], message


JSON = {
    "syntax": ('{"seed": 1,\n "stage" "sft"}', ["run.json, line 2", "not valid JSON"]),
    "key twice": ('{"seed": 1, "seed": 2}', ["run.json: `seed` stands there twice; keep one"]),
}


@pytest.mark.parametrize("cause", JSON)
def test_a_malformed_json_file(tmp_path, monkeypatch, capsys, cause):
    monkeypatch.chdir(tmp_path)
    text, parts = JSON[cause]
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    assert main(["train", "run.json"]) == 2
    message = only_message(capsys, tmp_path)
    assert [part for part in parts if part not in message] == [], message


STAGES = {
    "pairs where prompts are": ("dpo", {"packing": True}, ["line", "`packing` is for stage pt"]),
    "loss of pairs": ("dpo", {"pref_loss": "kto_pair"}, ["`pref_loss: kto_pair` is not supported", "apo_zero"]),
    "smoothing of another loss": (
        "dpo",
        {"pref_loss": "ipo", "dpo_label_smoothing": 0.1},
        ["`dpo_label_smoothing` does not go with pref_loss: ipo", "sigmoid, robust"],
    ),
    "dropout while sampling": ("ppo", {"lora_dropout": 0.1}, ["`lora_dropout` must be 0 in stage ppo"]),
    "no reward": ("ppo", {}, ["`reward_model` is missing", "reward_model: runs/rm"]),
    "weights for too few rewards": (
        "grpo",
        {"reward_funcs": "exact_match", "reward_weights": "1,2"},
        ["reward_weights", "2"],
    ),
    "unknown rule": ("grpo", {"reward_funcs": "exact_macth"}, ["reward_funcs", "exact_match"]),
    "critic of another kind": (
        "ppo",
        {"reward_funcs": "exact_match", "critic": "model"},
        ["`critic: model` does not go with finetuning_type: lora", "critic: adapter"],
    ),
    "another reference": (
        "grpo",
        {"reward_funcs": "exact_match", "ref_model": "m"},
        ["`ref_model` is for stages dpo and kto", "model_name_or_path"],
    ),
    "groups that do not divide": (
        "grpo",
        {"reward_funcs": "exact_match", "num_return_sequences": 3},
        ["num_return_sequences: 3 does not divide", "whole groups"],
    ),
}


@pytest.mark.parametrize("cause", STAGES)
def test_keys_that_do_not_go_with_a_stage(work, tmp_path, capsys, cause):
    stage, keys, parts = STAGES[cause]
    assert main(["train", work("run.yaml", stage=stage, **keys)]) == 2
    message = only_message(capsys, tmp_path)
    assert [part for part in parts if part not in message] == [], message


PIPELINES = {
    "no stages": ("name: p\n", (), ["p.yaml", "`stages`"]),
    "stages that are no list": ("stages: sft\n", (), ["p.yaml, line 2", "stages"]),
    "stage without a name": ("stages:\n  - stage: sft\n", (), ["p.yaml, line 3", "name"]),
    "unknown stage": ("stages:\n  - {name: a, stage: sfft}\n", (), ["p.yaml, line 3", "sfft", "did you mean sft?"]),
    "two of a name": (
        "stages:\n  - {name: a, stage: sft}\n  - {name: a, stage: rm}\n",
        (),
        ["p.yaml, line 4", "a"],
    ),
    "unknown key of a stage": (
        "stages:\n  - name: a\n    stage: sft\n    model_name_or_path: m\n    dataset: d\n    lora_rnk: 4\n",
        (),
        ["p.yaml, line 7", "lora_rnk", "did you mean `lora_rank`?"],
    ),
    "reference to nothing": (
        "stages:\n  - {name: a, stage: sft, model_name_or_path: '${b.output_dir}', dataset: d}\n",
        (),
        ["p.yaml, line 3", "${b.output_dir}"],
    ),
    "file of a stage": ("stages:\n  - {name: a, stage: sft, config: gone.yaml}\n", (), ["gone.yaml", "no such file"]),
    "unknown generator": (
        "prepare:\n  - {generator: text2sqll, output: d}\n"
        "stages:\n  - {name: a, stage: sft, model_name_or_path: m, dataset: d}\n",
        (),
        ["p.yaml, line 3", "text2sql"],
    ),
    "override of no stage": (
        "stages:\n  - {name: a, stage: sft, model_name_or_path: m, dataset: d}\n",
        ("b.seed=3",),
        ["command line", "b"],
    ),
}


@pytest.mark.parametrize("cause", PIPELINES)
def test_a_malformed_pipeline(tmp_path, monkeypatch, capsys, cause):
    monkeypatch.chdir(tmp_path)
    text, arguments, parts = PIPELINES[cause]
    (tmp_path / "p.yaml").write_text("output_dir: run\n" + text, encoding="utf-8")
    assert main(["run", "p.yaml", *arguments]) == 2
    message = only_message(capsys, tmp_path)
    assert [part for part in parts if part not in message] == [], message
