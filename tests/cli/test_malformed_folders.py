"""Malformed model, adapter and reward folders, templates and code: one message with folder, key and fix; status 2."""

import json
import shutil

import pytest

from posttrain.cli import main


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base):
    """Folders of a trained adapter and a trained reward model."""
    root = tmp_path_factory.mktemp("adapters")
    chats = [{"instruction": f"Count table {i}.", "output": f"SELECT {i};"} for i in range(4)]
    pairs = [{"prompt": f"Count table {i}.", "chosen": f"SELECT {i};", "rejected": "No."} for i in range(4)]
    for name, data in (("sft", chats), ("rm", pairs)):
        (root / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
        keys = {"model_name_or_path": base, "dataset": root / f"{name}.json", "output_dir": root / name, "stage": name}
        keys |= {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        (root / f"{name}.yaml").write_text("".join(f"{k}: {v}\n" for k, v in keys.items()), encoding="utf-8")
        assert main(["train", str(root / f"{name}.yaml")]) == 0
    return root


@pytest.fixture
def message_of(work, tmp_path, capsys):
    """The message of a run that is refused."""

    def run(**keys):
        capsys.readouterr()
        assert main(["train", work("run.yaml", **keys)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("posttrain: error: ") == 1, captured.err
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert not (tmp_path / "run" / "all_results.json").exists()
        return captured.err[captured.err.index("posttrain: error: ") :]

    return run


def drop(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def change(name, **keys):
    def changed(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8")) | keys
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return changed


# name -> (what is done to the copy "model", further keys, parts of the message)
MODELS = {
    "no config": (drop("config.json"), {}, ["model", "config.json"]),
    "broken config": (write("config.json", "{"), {}, ["config.json", "JSON"]),
    "unknown architecture": (change("config.json", model_type="none-such"), {}, ["model", "causal language model"]),
    "no weights": (drop("model.safetensors"), {}, ["model", "no weights", "git lfs pull"]),
    "weights that are none": (write("model.safetensors", "version https://git-lfs"), {}, ["model", "cannot be loaded"]),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("token*")],
        {},
        ["holds no tokenizer", "Copy the tokenizer"],
    ),
    "broken tokenizer": (write("tokenizer.json", "{"), {}, ["model", "tokenizer cannot be read"]),
    "no template": (drop("chat_template.jinja"), {}, ["no chat template", "set `template` to one of"]),
    "broken template": (write("chat_template.jinja", "{% for m in %}"), {}, ["template"]),
    "layers that it lacks": (
        lambda folder: None,
        {"finetuning_type": "freeze", "freeze_trainable_layers": 7},
        ["freeze_trainable_layers is 7", "2 layers"],
    ),
    "modules that it lacks": (lambda folder: None, {"lora_target": "q_prj"}, ["lora_target names q_prj", "q_proj"]),
}


@pytest.mark.parametrize("cause", MODELS)
def test_a_malformed_model_folder(message_of, base, tmp_path, cause):
    harm, keys, parts = MODELS[cause]
    shutil.copytree(base, tmp_path / "model")
    harm(tmp_path / "model")
    message = message_of(model_name_or_path=str(tmp_path / "model"), **keys)
    assert [part for part in parts if part not in message] == [], message


# name -> (what is done to the copy "adapter" of an SFT run, parts of the message)
ADAPTERS = {
    "not there": (lambda folder: shutil.rmtree(folder), ["adapter", "does not exist"]),
    "no config": (drop("adapter_config.json"), ["adapter", "adapter_config.json"]),
    "broken config": (write("adapter_config.json", "{"), ["adapter_config.json"]),
    "no weights": (drop("adapter_model.safetensors"), ["adapter", "adapter_model.safetensors"]),
    "weights that are none": (write("adapter_model.safetensors", "no"), ["adapter_model.safetensors"]),
    "another rank": (change("adapter_config.json", r=4), ["fit"]),
    "another kind": (
        change("adapter_config.json", peft_type="IA3"),
        ["adapter_config.json", "is IA3; only LORA"],
    ),
    "damaged lineage": (write("lineage.json", "{"), ["lineage.json is damaged", "Delete it"]),
}


@pytest.mark.parametrize("cause", ADAPTERS)
def test_a_malformed_adapter_folder(message_of, adapters, tmp_path, cause):
    harm, parts = ADAPTERS[cause]
    shutil.copytree(adapters / "sft", tmp_path / "adapter")
    harm(tmp_path / "adapter")
    message = message_of(adapter_name_or_path=str(tmp_path / "adapter"))
    assert [part for part in parts if part not in message] == [], message


# name -> (what is done to the copy "reward", further keys, parts of the message)
REWARDS = {
    "not there": (lambda folder: shutil.rmtree(folder), {}, ["reward", "does not exist"]),
    "no head": (drop("value_head.safetensors"), {}, ["reward", "head"]),
    "broken head": (write("value_head.safetensors", "no"), {}, ["value_head.safetensors"]),
    "neither adapter nor model": (drop("adapter_config.json"), {}, ["reward", "neither", "config.json"]),
    "an adapter called a model": (
        lambda folder: None,
        {"reward_model_type": "full"},
        ["reward_model_type: full means a whole model", "Remove reward_model_type"],
    ),
    "a folder called a server": (
        lambda folder: None,
        {"reward_model_type": "api"},
        ["reward_model_type: api", "address"],
    ),
}


@pytest.mark.parametrize("cause", REWARDS)
def test_a_malformed_reward_folder(message_of, adapters, tmp_path, cause):
    harm, keys, parts = REWARDS[cause]
    shutil.copytree(adapters / "rm", tmp_path / "reward")
    harm(tmp_path / "reward")
    message = message_of(stage="ppo", max_new_tokens=4, reward_model=str(tmp_path / "reward"), **keys)
    assert [part for part in parts if part not in message] == [], message


# name -> (files beside the configuration, keys, parts of the message)
CODE = {
    "file of a reward": ({}, {"reward_funcs": "gone.py:f"}, ["gone.py"]),
    "function of a reward": (
        {"r.py": "def g(completions):\n    return []\n"},
        {"reward_funcs": "r.py:f"},
        ["r.py", "f"],
    ),
    "syntax of a reward": ({"r.py": "def f(:\n"}, {"reward_funcs": "r.py:f"}, ["r.py", "line 1"]),
    "pattern of a rule": ({}, {"reward_funcs": "regex:("}, ["regex"]),
    "class of an algorithm": (
        {"a.py": "class A:\n    pass\n"},
        {"algorithm": "a.py:A", "reward_funcs": "exact_match"},
        ["a.py:A", "lacks"],
    ),
    "no class": ({}, {"algorithm": "ppo", "reward_funcs": "exact_match"}, ["algorithm: ppo", "path/to/file.py:Class"]),
}


@pytest.mark.parametrize("cause", CODE)
def test_code_that_cannot_be_used(message_of, tmp_path, cause):
    files, keys, parts = CODE[cause]
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    message = message_of(stage="grpo", num_return_sequences=2, max_new_tokens=4, **keys)
    assert [part for part in parts if part not in message] == [], message


def test_an_unknown_template(message_of):
    message = message_of(template="qwem")
    assert "qwem" in message
    assert "qwen" in message


def test_a_checkpoint_that_is_not_there(message_of):
    assert "resume_from_checkpoint: no folder" in message_of(resume_from_checkpoint="run/checkpoint-9")
