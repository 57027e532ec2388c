"""Whole runs from a configuration: what they leave behind, measure, keep, resume and refuse."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config import load_config
from posttrain.errors import RunError, UserError
from posttrain.models.fetch import resolve_model
from posttrain.train.run import train

PPO_LOG = {
    *("reward_mean", "reward_std", "kl", "kl_k1", "kl_k2", "kl_k3", "kl_coef", "entropy", "clip_fraction", "ratio"),
    *("value_loss", "explained_variance", "response_length", "ended_share", "lr", "grad_norm", "loss"),
    *("seconds_generate", "seconds_score", "seconds_train", "tokens_per_second"),
    *("generate_tokens_per_second", "score_tokens_per_second", "train_tokens_per_second"),
    *("current_steps", "total_steps", "epoch", "percentage", "elapsed_time", "remaining_time"),
}
ALWAYS = {"config.yaml", "lineage.json", "trainer_log.jsonl", "all_results.json", "train_results.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json"}
WHOLE = {"model.safetensors", "config.json"}


@pytest.fixture
def start(tiny_config, trained, tmp_path):
    """Run a stage into ``tmp_path/out``; returns its results and the sentences it said."""

    def run(stage, **keys):
        if stage == "ppo":
            keys = {"reward_model": str(trained / "rm"), **keys}
        said = []
        results = train(tiny_config(stage, tmp_path / "out", **keys), notify=said.append)
        return results, said

    return run


def log(tmp_path, name="trainer_log.jsonl"):
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text("utf-8").splitlines()]


def read(tmp_path, name):
    return json.loads((tmp_path / "out" / name).read_text("utf-8"))


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
@pytest.mark.parametrize("stage", ["pt", "sft", "rm"])
def test_the_directory_of_an_offline_run(start, tiny_llama, tmp_path, stage, kind) -> None:
    more = {"freeze_trainable_layers": 1} if kind == "freeze" else {}
    results, _ = start(
        stage, finetuning_type=kind, val_size=2, plot_loss=True, report_to="tensorboard", save_steps=1, **more
    )
    out = tmp_path / "out"
    found = {path.name for path in out.iterdir()}
    expected = ALWAYS | (ADAPTER if kind == "lora" else WHOLE) | TOKENIZER | {"eval_results.json", "runs"}
    expected |= {"training_loss.png", "training_eval_loss.png"} | (
        {"value_head.safetensors"} if stage == "rm" else set()
    )
    assert expected <= found
    assert {p.name for p in out.glob("checkpoint-*")} == {f"checkpoint-{i + 1}" for i in range(results["total_steps"])}
    assert list((out / "runs").glob("events.out.tfevents.*"))
    assert (out / "training_loss.png").read_bytes()[:4] == b"\x89PNG"
    assert AutoTokenizer.from_pretrained(out).chat_template
    model = AutoModelForCausalLM.from_pretrained(tiny_llama if kind == "lora" else out)
    if kind == "lora":
        PeftModel.from_pretrained(model, out)
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".bin", ".pkl") or p.name.startswith(".tmp")]
    assert results["eval_loss"] == read(tmp_path, "eval_results.json")["eval_loss"]
    names = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    names |= {"pt": {"eval_perplexity"}, "sft": set(), "rm": {"eval_accuracy", "eval_margin"}}[stage]
    assert names <= results.keys()


def test_full_and_freeze_train_what_they_say(start, tiny_llama, tmp_path) -> None:
    before = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    start("sft", finetuning_type="freeze", freeze_trainable_layers=1)
    frozen = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    moved = {name for name, weight in frozen.items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[2] for name in moved} == {"1"}
    assert len(moved) == 9
    start("sft", finetuning_type="full", overwrite_output_dir=True)
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(not torch.equal(weight, before[name]) for name, weight in full.items())


def test_the_log_of_an_offline_run(start, tmp_path) -> None:
    results, _ = start("sft", num_train_epochs=2, warmup_steps=2, lr_scheduler_type="constant_with_warmup")
    lines = log(tmp_path)
    assert [line["current_steps"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "grad_norm", "epoch", "percentage", "tokens_per_second", "entropy"} <= lines[0].keys()
    assert [line["lr"] for line in lines] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert results["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 6)
    assert results["train_tokens"] == read(tmp_path, "train_results.json")["train_tokens"] > 0
    assert lines[-1]["epoch"] == results["epoch"] == 2.0


def test_the_directory_and_the_log_of_ppo(start, tmp_path, trained) -> None:
    results, _ = start("ppo", val_size=2, plot_loss=True, report_to="tensorboard", kl_estimator="k3")
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert ALWAYS | ADAPTER | TOKENIZER | {"completions.jsonl", "eval_results.json", "runs"} <= names
    assert {"training_loss.png", "training_reward.png"} <= names
    lines = [line for line in log(tmp_path) if "loss" in line]
    assert [line["current_steps"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line.keys() >= PPO_LOG
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
        assert line["kl"] == line["kl_k3"]
    assert {"eval_reward", "eval_kl", "eval_reward_before", "eval_runtime", "eval_samples_per_second"} <= results.keys()
    rows = log(tmp_path, "completions.jsonl")
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4  # ten prompts: the stream wraps


def test_completions_agree_with_the_log(start, tmp_path) -> None:
    start("ppo")
    lines, rows = log(tmp_path), log(tmp_path, "completions.jsonl")
    assert len(rows) == 12
    for line in lines:
        own = [row for row in rows if row["step"] == line["current_steps"]]
        assert line["reward_mean"] == pytest.approx(sum(row["reward"] for row in own) / 4, rel=1e-5)
        assert line["kl_k1"] == pytest.approx(sum(row["kl"] for row in own) / 4, abs=1e-5)
        assert line["response_length"] == sum(row["response_length"] for row in own) / 4
        assert line["ended_share"] == sum(row["ended"] for row in own) / 4
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in rows)
    assert len({row["prompt"] for row in rows}) == 12


def test_a_critic_from_the_reward_starts_on_the_scale_of_normalised_rewards(start, monkeypatch) -> None:
    """The first values are those of the reward's scale, less its mean, by its deviation."""
    from posttrain.algorithms import PPO

    seen, credit = [], PPO.credit
    monkeypatch.setattr(PPO, "credit", lambda self, batch, state: seen.append(batch) or credit(self, batch, state))
    for normalised in (False, True):
        start("ppo", critic="adapter", ppo_score_norm=normalised, max_steps=1, overwrite_output_dir=True)
    raw, scaled = seen
    assert torch.equal(raw.rewards, scaled.rewards)
    expected = (raw.values - raw.rewards.mean()) / raw.rewards.std()
    mask = raw.loss_mask
    torch.testing.assert_close(scaled.values[mask], expected[mask], atol=1e-4, rtol=1e-4)
    assert (scaled.values - raw.values)[mask].abs().max() > 0.05


def test_the_resolved_configuration_runs_again(start, tiny_config, tmp_path) -> None:
    start("sft", lora_dropout=0.1)
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text("utf-8"))
    assert load_config(written) == tiny_config("sft", tmp_path / "out", lora_dropout=0.1)


def test_sft_on_a_text_column(start, tiny_data, tmp_path) -> None:
    """All tokens train, so there are more of them than in any chat."""
    start("sft", dataset=str(tiny_data / "text.jsonl"), text_column="text", val_size=2)
    assert read(tmp_path, "eval_results.json")["eval_loss"] > 0
    assert read(tmp_path, "lineage.json")["template"] is None


def test_perplexity_before_and_after(start, tmp_path) -> None:
    results, _ = start("pt", val_size=2, learning_rate=1e-2, num_train_epochs=4)
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    assert (
        results["eval_perplexity"]
        < results["eval_perplexity_before"]
        == pytest.approx(math.exp(results["eval_loss_before"]))
    )
    assert log(tmp_path)[0]["current_steps"] == 0


def test_evaluation_during_training(start, tmp_path) -> None:
    start("rm", val_size=4, eval_strategy="steps", eval_steps=1, num_train_epochs=2)
    evaluated = [line for line in log(tmp_path) if "eval_loss" in line]
    assert [line["current_steps"] for line in evaluated] == [1, 2, 3, 4]
    assert evaluated[-1]["eval_accuracy"] == read(tmp_path, "eval_results.json")["eval_accuracy"]


def test_the_best_checkpoint_is_kept_and_loaded(start, tmp_path) -> None:
    """A rate so high that later steps are worse; the results are then those of the best one."""
    results, _ = start(
        "sft",
        val_size=4,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        save_total_limit=1,
        learning_rate=0.5,
        num_train_epochs=2,
        lr_scheduler_type="constant",
        save_steps=1000,
    )
    losses = {line["current_steps"]: line["eval_loss"] for line in log(tmp_path) if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert best != max(losses)
    assert results["eval_loss"] == pytest.approx(losses[best])
    assert {p.name for p in (tmp_path / "out").glob("checkpoint-*")} == {
        f"checkpoint-{best}",
        f"checkpoint-{max(losses)}",
    }
    final = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert final == (tmp_path / "out" / f"checkpoint-{best}" / "adapter_model.safetensors").read_bytes()


def test_early_stopping(start, tmp_path) -> None:
    results, _ = start(
        "sft",
        val_size=4,
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_steps=2,
        learning_rate=0.5,
        num_train_epochs=20,
        lr_scheduler_type="constant",
    )
    losses = [line["eval_loss"] for line in log(tmp_path) if "eval_loss" in line]
    assert results["stopped_at_step"] == len(losses) < results["total_steps"] == 40
    assert min(losses[-2:]) >= min(losses[:-2])
    assert (tmp_path / "out" / f"checkpoint-{len(losses)}").is_dir()


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_resuming_a_finished_run_returns_at_once(start, tmp_path, stage) -> None:
    results, _ = start(stage)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again, said = start(stage, resume_from_checkpoint=True)
    assert any("finished: nothing to do" in sentence for sentence in said)
    assert again == json.loads(json.dumps(results))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_resuming_where_there_is_nothing_starts_afresh_and_says_so(start, tmp_path) -> None:
    results, said = start("sft", resume_from_checkpoint=True)
    assert any("no checkpoint in" in sentence and "starting afresh" in sentence for sentence in said)
    assert results["stopped_at_step"] == 3


def test_resuming_with_more_epochs_goes_on(start, tmp_path) -> None:
    start("sft", lr_scheduler_type="constant")
    results, _ = start("sft", num_train_epochs=2, resume_from_checkpoint=True, lr_scheduler_type="constant")
    assert results["stopped_at_step"] == results["total_steps"] == 6
    assert [line["current_steps"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_overwritten_unasked(start) -> None:
    start("sft")
    with pytest.raises(UserError, match="already holds a finished run"):
        start("sft")
    start("sft", overwrite_output_dir=True)


def test_a_bad_configuration_leaves_the_earlier_run_alone(start, trained, tmp_path) -> None:
    start("sft")
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="has no reward head"):
        start("ppo", overwrite_output_dir=True, reward_model=str(trained / "sft"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == before


def test_bad_input_leaves_nothing_half_written(start, trained, tmp_path) -> None:
    for keys in ({"dataset": str(tmp_path / "nowhere.json")}, {"adapter_name_or_path": str(tmp_path / "nowhere")}):
        with pytest.raises(UserError, match="nowhere"):
            start("sft", **keys)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_explodes_is_a_failed_run(start, tmp_path, monkeypatch) -> None:
    from posttrain.algorithms import SFT

    loss = SFT.loss

    def exploding(self, role, out, batch):
        term = loss(self, role, out, batch)
        return type(term)(loss=term.loss * math.inf, metrics=term.metrics, unit=term.unit)

    monkeypatch.setattr(SFT, "loss", exploding)
    with pytest.raises(RunError, match=r"became (inf|nan|-inf) at step 1.*No checkpoint had been written before"):
        start("sft")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_checkpoints_load_as_models(start, tiny_llama, tmp_path) -> None:
    start("sft", save_steps=1, save_only_model=True)
    folder = tmp_path / "out" / "checkpoint-1"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(resolve_model(str(tiny_llama))), folder)
    assert not (folder / "optimizer.safetensors").exists()


def test_the_best_of_checkpoints_with_the_model_only_is_loaded(start, tmp_path) -> None:
    keys = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    results, _ = start("sft", **keys, save_only_model=True, learning_rate=0.5, lr_scheduler_type="constant")
    losses = {line["current_steps"]: line["eval_loss"] for line in log(tmp_path) if "eval_loss" in line}
    assert min(losses, key=losses.get) != max(losses)
    assert results["eval_loss"] == pytest.approx(min(losses.values()))


@pytest.mark.parametrize(
    ("first", "second", "gone"),
    [
        (("rm", {}), ("sft", {}), {"value_head.safetensors"}),
        (("sft", {}), ("sft", {"finetuning_type": "full"}), ADAPTER),
        (("sft", {"finetuning_type": "full"}), ("sft", {}), WHOLE),
    ],
)
def test_overwriting_leaves_no_weights_of_another_kind(start, tmp_path, first, second, gone) -> None:
    start(first[0], **first[1])
    assert all((tmp_path / "out" / name).exists() for name in gone)
    start(second[0], **second[1], overwrite_output_dir=True)
    assert not any((tmp_path / "out" / name).exists() for name in gone)


def test_training_on_a_model_in_its_own_folder_keeps_the_model(start, tmp_path) -> None:
    start("sft", finetuning_type="full")
    out = str(tmp_path / "out")
    start("sft", model_name_or_path=out, overwrite_output_dir=True)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(out), out)


def test_pictures_that_cannot_be_drawn_do_not_end_the_run(start, monkeypatch) -> None:
    def refuse(directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posttrain.train.run.plot_run", refuse)
    results, said = start("sft", plot_loss=True)
    assert results["stopped_at_step"] == 3
    assert any("could not be drawn (No space left on device)" in sentence for sentence in said)


def test_a_full_disk_at_the_end_is_a_failed_run_that_can_be_finished(start, tmp_path, monkeypatch) -> None:
    from posttrain.models.assemble import Assembly

    save = Assembly.save

    def full(self, folder, tokenizer):
        save(self, folder, tokenizer)
        if "model" in folder.name:
            raise Exception("No space left on device (os error 28)")

    keys = {"val_size": 2, "lr_scheduler_type": "constant"}
    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "save", full)
        with pytest.raises(RunError, match=r"No space left .*last good checkpoint is checkpoint-3"):
            start("sft", **keys)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    results, _ = start("sft", **keys)
    assert results["stopped_at_step"] == 3
    assert results["train_loss"] == pytest.approx(sum(line.get("loss", 0.0) for line in log(tmp_path)) / 3)
    assert [line["current_steps"] for line in log(tmp_path)] == [1, 2, 3, 3]


def test_a_run_with_a_name_has_its_events_under_it(start, tmp_path) -> None:
    start("sft", report_to="tensorboard", run_name="first")
    assert list((tmp_path / "out" / "runs" / "first").glob("events.out.tfevents.*"))
