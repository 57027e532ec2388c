"""The doctor on sound runs of every stage, and on runs with one thing wrong each."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.data import stream
from posttrain.diagnose import doctor as module
from posttrain.diagnose.doctor import Doctor
from posttrain.diagnose.findings import Finding, has_errors
from posttrain.errors import RunError

FUNCTION = """
def length(completions, **columns):
    return [float(len(text)) for text in completions]


def broken(completions, **columns):
    return [float("nan") for _ in completions]


def constant(completions, **columns):
    return [1.0 for _ in completions]
"""


@pytest.fixture
def examined(tiny_config, tmp_path):
    """Findings of the doctor about a run of a stage; ``fast`` unless told otherwise."""

    def run(stage, *, fast=True, **keys):
        config = tiny_config(stage, keys.pop("output_dir", tmp_path / "run"), **keys)
        return list(Doctor(config).findings(fast=fast))

    return run


def named(findings, check, level=None):
    return [f for f in findings if f.check == check and level in (None, f.level)]


def one(findings, check, level):
    found = named(findings, check, level)
    assert len(found) == 1, [finding.line() for finding in findings]
    return found[0]


def lines(findings):
    return [finding.line() for finding in findings]


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "kto"])
def test_a_sound_offline_run(examined, stage):
    findings = examined(stage, fast=False, save_steps=1, num_train_epochs=4)
    assert not has_errors(findings), lines(findings)
    step = one(findings, "step", None)
    assert step.details["grad_norm"] > 0
    assert step.details["seconds"] > 0
    assert one(findings, "time", "ok").details["seconds"] > 0
    assert not named(findings, "doctor")
    assert bool(named(findings, "scores")) == (stage == "rm")
    assert bool(named(findings, "end of turn")) == (stage != "pt")


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo", "reinforce", "remax", "online_dpo", "rejection"])
def test_a_sound_online_run(examined, trained, stage, tmp_path):
    keys = {"per_device_train_batch_size": 8, "max_steps": 12, "save_steps": 3}
    findings = examined(stage, fast=False, reward_model=str(trained / "rm"), **keys)
    assert not has_errors(findings), lines(findings)
    assert one(findings, "reward model", "ok").message.endswith("v_head.summary in value_head.safetensors")
    assert "tokens a second" in one(findings, "rollout", "ok").message
    assert one(findings, "step", "ok").details["grad_norm"] >= 0
    assert one(findings, "time", "ok")
    assert not (tmp_path / "run").exists()


def test_without_the_model_no_weights_are_loaded(examined, monkeypatch):
    def refuse(*arguments, **keys):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("posttrain.diagnose.trial.dressed", refuse)
    findings = examined("sft")
    assert not has_errors(findings)
    assert not named(findings, "weights")
    assert "unexpected AssertionError" in one(examined("sft", fast=False), "weights", "error").message


def test_a_broken_part_hides_no_other(examined, tiny_data, tmp_path):
    findings = examined("sft", fast=False, dataset=str(tiny_data / "none.json"))
    assert "no such file" in one(findings, "rows", "error").message
    assert named(findings, "memory", "ok")
    assert named(findings, "versions", "ok")
    waiting = one(findings, "doctor", "warning").message
    assert all(name in waiting for name in ("template", "labels", "learning rate", "disk", "weights", "step"))


def test_what_nobody_foresaw_is_named(examined, monkeypatch):
    monkeypatch.setattr(module, "output_dir", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("by zero")))
    findings = examined("sft")
    assert one(findings, "output_dir", "error").message == "unexpected ZeroDivisionError: by zero"
    assert named(findings, "memory", "ok")


def test_a_library_in_another_version_than_required(examined, monkeypatch):
    monkeypatch.setattr("posttrain.diagnose.installed.metadata.requires", lambda name: ["torch>=99", "none-such>1"])
    messages = [finding.message for finding in named(examined("sft"), "versions", "error")]
    assert messages[0].startswith("torch>=99 is required and ")
    assert messages[1] == "none-such>1 is required and nothing is installed"


def test_a_template_that_closes_no_answer(examined, tiny_llama, tmp_path):
    folder = tmp_path / "unclosed"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}", encoding="utf-8"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    findings = examined("sft", model_name_or_path=str(folder))
    assert "closes no answer" in one(findings, "rows", "error").message


def test_rows_without_their_end_of_turn(tiny_config, tiny_tokenizer, tmp_path):
    from posttrain.data.datasets import load_dataset
    from posttrain.diagnose.rendering import end_of_turn

    config = tiny_config("sft", tmp_path)
    splits = load_dataset(config.data, tiny_tokenizer, "sft")
    assert end_of_turn(splits, config).level == "ok"
    splits.train[3].input_ids.pop()
    splits.train[3].loss_mask.pop()
    found = end_of_turn(splits, config)
    assert found.level == "error"
    assert "(first: row 4)" in found.message
    splits.train[3].input_ids.append(splits.template.end_of_turn[-1])
    splits.train[3].loss_mask.append(False)
    assert end_of_turn(splits, config).level == "error"


def test_a_tokenizer_that_changes_text(examined, tiny_llama, tmp_path):
    folder = tmp_path / "lower"
    shutil.copytree(tiny_llama, folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    finding = one(examined("sft", model_name_or_path=str(folder)), "template", "warning")
    assert "user\\nwhat is" in finding.message
    assert "user\\nWhat is" in finding.message
    assert "changes text" in finding.fix


def test_a_tokenizer_of_another_model(examined, tiny_llama, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}), encoding="utf-8")
    finding = one(examined("sft", model_name_or_path=str(folder)), "special tokens", "error")
    assert "the model has 200 embeddings" in finding.message


def test_a_model_that_others_stop_elsewhere(examined, tiny_llama, tmp_path):
    folder = tmp_path / "stops"
    shutil.copytree(tiny_llama, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}', encoding="utf-8")
    assert (
        "stops at [5, 6]" in one(examined("sft", model_name_or_path=str(folder)), "special tokens", "warning").message
    )


def test_a_limit_that_cuts_everything(examined):
    assert "no row is left to use" in one(examined("sft", cutoff_len=8), "rows", "error").message
    finding = one(examined("sft", cutoff_len=20), "rows", "warning")
    assert finding.details["cut"] > 0
    assert "Raise cutoff_len (20)" in finding.fix


def test_rows_longer_than_the_models_positions(examined):
    assert "positions up to 256; rows may have 300" in one(examined("sft", cutoff_len=300), "model", "warning").message
    assert one(examined("sft", cutoff_len=256), "model", "ok")


def test_hardly_a_token_trains(examined, tmp_path):
    path = tmp_path / "long.json"
    rows = [{"instruction": "word " * 200, "output": "a"}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    findings = examined("sft", dataset=str(path), cutoff_len=2048)
    assert one(findings, "labels", "warning").message.startswith("0% of the tokens")
    shown = one(findings, "labels", "warning").block
    assert "{+" not in "".join(shown[: shown.index("...")])
    assert shown[-1] == "{+a<|im_end|>+}"
    assert "{+pear<|im_end|>+}" in one(examined("sft"), "labels", "ok").block


def test_courses_that_lead_nowhere(examined):
    assert one(examined("sft", max_steps=50, warmup_steps=60), "learning rate", "warning").message.endswith(
        "never ends"
    )
    assert one(examined("sft", learning_rate=0.0), "learning rate", "error")
    assert "teach little" in one(examined("sft", num_train_epochs=1), "learning rate", "warning").message
    late = one(examined("sft", max_steps=40), "course", "warning")
    assert late.message.startswith("save_steps is 500 and the run has 40 steps: no checkpoint is written")
    assert late.fix == "save_steps: 8"
    sound = one(examined("sft", max_steps=40, warmup_steps=10, lr_scheduler_type="cosine"), "learning rate", "ok")
    assert sound.details["peak"] == 1e-3
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}}
    least = one(examined("sft", max_steps=40, **kwargs), "learning rate", "ok")
    assert least.message.endswith(("0.000501 at the end", "0.0005 at the end", "0.000502 at the end"))
    bars = sound.block[0]
    assert len(bars) == 40
    assert bars.index("█") == 10
    assert bars[-1] in " ▁"


def test_a_full_disk(examined, monkeypatch):
    usage = type("Usage", (), {"free": 10**5})
    monkeypatch.setattr("posttrain.diagnose.folder.shutil.disk_usage", lambda path: usage)
    finding = one(examined("sft", max_steps=40, save_steps=10), "disk", "error")
    assert finding.message.startswith("4 checkpoints of ")
    assert "save_total_limit: 2" in finding.fix
    assert finding.details["needed_bytes"] > 10**5
    monkeypatch.undo()
    many = one(examined("sft", max_steps=40, save_steps=1), "disk", "warning")
    assert "save_total_limit: 3" in many.fix
    kept = one(examined("sft", max_steps=40, save_steps=1, save_total_limit=2), "disk", "ok")
    assert "40 checkpoints" in kept.message
    assert ", 3 at once" in kept.message
    assert one(examined("sft", save_strategy="no"), "disk", "ok").details["checkpoints"] == 0


def test_a_model_that_does_not_fit(examined, monkeypatch):
    monkeypatch.setattr("posttrain.diagnose.memory._LIBRARIES", 0)
    planned = one(examined("sft", cutoff_len=256), "memory", "ok").details["planned_bytes"]
    monkeypatch.setattr("posttrain.diagnose.memory.free_memory_bytes", lambda: planned - 1)
    finding = one(examined("sft", cutoff_len=256), "memory", "error")
    assert "does not fit" in finding.message
    assert finding.fix.startswith("Set ")
    monkeypatch.setattr("posttrain.diagnose.memory.free_memory_bytes", lambda: 1000)
    assert "smaller model" in one(examined("sft"), "memory", "error").fix
    monkeypatch.setattr("posttrain.diagnose.memory.free_memory_bytes", lambda: planned + planned // 10)
    assert "tight" in one(examined("sft", cutoff_len=256), "memory", "warning").message


def test_a_reward_folder_without_its_head(examined, trained, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(trained / "rm", folder)
    (folder / "value_head.safetensors").unlink()
    findings = examined("ppo", fast=False, reward_model=str(folder))
    assert "has no reward head" in one(findings, "reward model", "error").message
    assert sum(finding.level == "error" for finding in findings) == 1  # said once, whoever stumbles over it
    waiting = one(findings, "doctor", "warning").message
    assert all(name in waiting for name in ("memory", "weights", "rollout"))


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "no finite number"), (0.0, "all the same")])
def test_a_damaged_head(examined, trained, tmp_path, tiny_data, value, words):
    folder = tmp_path / "damaged"
    shutil.copytree(trained / "rm", folder)
    head = load_file(folder / "value_head.safetensors")
    head["v_head.summary.weight"] = torch.full_like(head["v_head.summary.weight"], value)
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt", "kind": "score"})
    keys = {"dataset": str(tiny_data / "chat.json"), "per_device_train_batch_size": 8}
    findings = examined("ppo", fast=False, reward_model=str(folder), **keys)
    assert words in one(findings, "scores", "error").message


def test_a_reward_model_that_prefers_the_wrong_side(examined, trained, tmp_path, tiny_data):
    folder = tmp_path / "swapped"
    shutil.copytree(trained / "rm", folder)
    head = load_file(folder / "value_head.safetensors")
    head["v_head.summary.weight"] *= -1
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt", "kind": "score"})
    keys = {"dataset": str(tiny_data / "pairs.json"), "per_device_train_batch_size": 8}
    right = one(examined("ppo", fast=False, reward_model=str(trained / "rm"), **keys), "scores", "ok")
    assert right.details["right"] > right.details["pairs"] / 2
    wrong = one(examined("ppo", fast=False, reward_model=str(folder), **keys), "scores", "warning")
    assert wrong.details["right"] == right.details["pairs"] - right.details["right"]


def test_rewards_of_functions(examined, tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(FUNCTION, encoding="utf-8")

    def with_function(name):
        return examined("grpo", fast=False, reward_funcs=f"{path}:{name}", per_device_train_batch_size=8)

    assert not has_errors(with_function("length"))
    assert "nan" in one(with_function("broken"), "reward", "error").message
    assert "the same for" in one(with_function("constant"), "reward", "warning").message
    missing = with_function("none_such")
    assert "none_such" in one(missing, "reward", "error").message
    assert "rollout" in one(missing, "doctor", "warning").message


def test_a_policy_that_is_not_its_reference(examined, trained, monkeypatch):
    def gate(batch, tolerance):
        raise RunError("Before the first update the actor already differs from its reference")

    monkeypatch.setattr("posttrain.train.online.check_kl", gate)
    findings = examined("ppo", fast=False, reward_model=str(trained / "rm"), per_device_train_batch_size=8)
    assert "already differs" in one(findings, "step", "error").message


def test_a_loss_that_is_no_number(examined, tiny_llama, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    finding = one(examined("sft", fast=False, model_name_or_path=str(folder)), "step", "error")
    assert "nan" in finding.message


def test_memory_that_runs_out(examined, monkeypatch):
    def full(*arguments, **keys):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("posttrain.engine.Engine.accumulate", full)
    finding = one(examined("sft", fast=False), "step", "error")
    assert "no smaller micro-batch helps" in finding.message


def test_folders_of_earlier_runs(examined, tiny_config, tmp_path):
    from posttrain.train.run import train

    folder = tmp_path / "run"
    assert "will be made" in one(examined("sft"), "output_dir", "ok").message
    train(tiny_config("sft", folder, max_steps=2, save_steps=1))
    assert "already holds a finished run" in one(examined("sft"), "output_dir", "error").message
    assert "will be removed" in one(examined("sft", overwrite_output_dir=True), "output_dir", "warning").message
    (folder / "all_results.json").unlink()
    (folder / "train_results.json").unlink()
    on = one(examined("sft", max_steps=2, save_steps=1), "output_dir", "ok")
    assert "go on from checkpoint-2" in on.message
    other = one(examined("sft", max_steps=2, lora_dropout=0.1), "output_dir", "warning")
    assert "lora_dropout: 0.0 -> 0.1" in other.message
    (folder / "thesis.docx").write_text("mine", encoding="utf-8")
    foreign = one(examined("sft", max_steps=2), "output_dir", "warning")
    assert "thesis.docx" in foreign.message
    assert "adapter_model" not in foreign.message
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert "is a file" in one(examined("sft", output_dir=blocked / "run"), "output_dir", "error").message


def test_large_data_are_sampled_with_their_longest_rows(examined, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 10)
    rows = [{"instruction": f"question {i}", "output": "a" * (400 if i == 33 else 3)} for i in range(100)]
    path = tmp_path / "many.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    findings = examined("sft", dataset=str(path), cutoff_len=1000, num_train_epochs=2)
    account = next(f for f in findings if f.check == "rows")
    assert account.details["rows"] == 100
    assert "looked at some of 100 rows" in account.message
    assert named(findings, "learning rate")[0].details["total_steps"] == pytest.approx(50, abs=1)


def test_the_step_is_on_the_longest_rows(examined, tmp_path):
    rows = [{"instruction": f"question {i}", "output": "a" * (200 if i == 7 else 3)} for i in range(12)]
    path = tmp_path / "uneven.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    keys = {"dataset": str(path), "cutoff_len": 1000, "max_tokens_per_microbatch": 64}
    step = one(examined("sft", fast=False, **keys), "step", None)
    assert step.details["tokens"] > 200


def test_findings_as_json_and_as_lines():
    finding = Finding(level="warning", check="disk", message="full", fix="Buy one", places=("a, row 1",), block=("x",))
    assert finding.line() == "warning  disk: full (first: a, row 1). Buy one"
    plain = finding.plain()
    assert plain["first"] == ["a, row 1"]
    assert plain["shown"] == "x"
    assert dataclasses.replace(finding, fix="", places=()).line() == "warning  disk: full"


def test_of_a_stream_the_first_rows_are_looked_at(examined, tmp_path, monkeypatch):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"q{i}", "output": "pear"}) + "\n" for i in range(90)))
    monkeypatch.setattr(stream, "LOOKED_AT", 20)
    findings = examined("sft", dataset=str(path), streaming=True, max_steps=4)
    assert not named(findings, "rows", "error")
    assert "read 20 rows" in one(findings, "rows", "ok").message
