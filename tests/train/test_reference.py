"""What the reference says is measured once, of the policy as it started, and kept for a run that is resumed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from posttrain.data.template import EncodedRow
from posttrain.train import reference
from posttrain.train import run as train_run
from posttrain.train.monitor import Monitor

LOG2 = math.log(2)


class StoppedError(Exception):
    """The power is cut."""


@pytest.fixture
def start(tiny_config, tmp_path, monkeypatch):
    """Run a stage into ``tmp_path/<name>``, cut off after a step if asked to; how often it measured the reference."""
    measured, measure, after = [], reference._measured, Monitor.after_step

    def counting(*args):
        measured.append(1)
        return measure(*args)

    def run(stage, name="out", *, stop_after=None, **keys):
        measured.clear()

        def cut(self, step, stats):
            after(self, step, stats)
            if step == stop_after:
                raise StoppedError

        config = tiny_config(stage, tmp_path / name, **{"save_steps": 1, "learning_rate": 1e-2, **keys})
        with monkeypatch.context() as patch:
            patch.setattr(reference, "_measured", counting)
            patch.setattr(Monitor, "after_step", cut)
            if stop_after is None:
                train_run.train(config)
            else:
                with pytest.raises(StoppedError):
                    train_run.train(config)
        return len(measured)

    return run


def log(folder):
    lines = (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same_bits(one, two):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def key_of(folder):
    with safe_open(folder / reference.FILE, framework="pt") as file:
        return file.metadata()["key"]


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("a new adapter", {}),
        ("an adapter that is continued", {"adapter_name_or_path": "sft"}),
        ("a new adapter on another", {"adapter_name_or_path": "sft", "create_new_adapter": True}),
        ("all weights", {"finetuning_type": "full", "learning_rate": 1e-3}),
    ],
)
def test_the_reference_is_the_policy_as_it_started(start, trained, tmp_path, where, keys) -> None:
    """Its loss is that of a coin in the first step, and not in the last."""
    if "adapter_name_or_path" in keys:
        keys = {**keys, "adapter_name_or_path": str(trained / keys["adapter_name_or_path"])}
    assert start("dpo", num_train_epochs=3, save_strategy="no", **keys) == 1
    first, *_, last = log(tmp_path / "out")
    assert first["loss"] == pytest.approx(LOG2, abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < LOG2 - 0.01
    assert last["rewards/margins"] > 0.02


def test_of_judged_answers_both_twins_are_measured(start, tmp_path) -> None:
    """At the start the policy is nowhere beyond its reference point: a half for good and for bad answers."""
    assert start("kto", save_strategy="no") == 1
    first = log(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert load_file(tmp_path / "out" / reference.FILE)["logps"].shape == (24,)


def test_losses_without_a_reference_measure_none(start, tmp_path) -> None:
    for name, loss in enumerate(("orpo", "cpo", "simpo")):
        assert start("dpo", str(name), pref_loss=loss, max_steps=1) == 0
        assert not (tmp_path / str(name) / reference.FILE).exists()


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_resumed_run_measures_nothing_and_ends_in_the_same_bits(start, tmp_path, stage) -> None:
    start(stage, "whole")
    assert start(stage, "cut", stop_after=2) == 1
    assert start(stage, "cut") == 0
    assert same_bits(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("harm", ["gone", "damaged", "never kept"])
def test_what_was_not_kept_is_measured_before_the_checkpoint_is_read(start, tmp_path, harm) -> None:
    """Else the reference would be the policy as it was when it was cut off."""
    keys = {"cache_ref_logps": False} if harm == "never kept" else {}
    start("dpo", "whole")
    start("dpo", "cut", stop_after=2, **keys)
    kept = tmp_path / "cut" / reference.FILE
    assert kept.exists() == (harm != "never kept")
    if harm == "gone":
        kept.unlink()
    elif harm == "damaged":
        kept.write_bytes(kept.read_bytes()[:-40])
    assert start("dpo", "cut", **keys) == 1
    assert same_bits(tmp_path / "whole", tmp_path / "cut")


def test_other_rows_or_weights_are_not_what_was_kept(start, trained, tiny_data, tmp_path) -> None:
    """The same folder, the same number of rows: the key says what the numbers are of."""
    start("dpo", stop_after=1)
    key = key_of(tmp_path / "out")
    rows = json.loads((tiny_data / "pairs.json").read_text("utf-8"))
    (tmp_path / "pairs.json").write_text(json.dumps([*rows[:-1], {**rows[-1], "chosen": "none"}]), encoding="utf-8")
    assert start("dpo", dataset=str(tmp_path / "pairs.json"), stop_after=2) == 1
    assert key_of(tmp_path / "out") != key
    keys = {"overwrite_output_dir": True, "stop_after": 1}
    found = [key]
    for more in ({"cutoff_len": 24}, {"adapter_name_or_path": str(trained / "sft")}):
        start("dpo", **keys, **more)
        found.append(key_of(tmp_path / "out"))
    start("dpo", **keys, adapter_name_or_path=str(trained / "sft"), create_new_adapter=True)
    found.append(key_of(tmp_path / "out"))
    assert len(set(found)) == 4
    # hyperparameters that the reference does not depend on leave it what it is
    start("dpo", **keys, pref_beta=0.3, per_device_train_batch_size=2, pref_ftx=0.2)
    assert key_of(tmp_path / "out") == key


def test_the_hash_is_of_tokens_masks_order_and_weights() -> None:
    rows = [EncodedRow([1, 2, 3], [False, True, True]), EncodedRow([1, 23], [False, True])]
    others = [
        (rows[::-1], "w"),
        (rows, "v"),
        ([EncodedRow([1, 2, 3], [False, False, True]), rows[1]], "w"),
        ([EncodedRow([12, 3], [False, True]), rows[1]], "w"),
        (rows[:1], "w"),
    ]
    hashes = {reference.content_hash(*of) for of in [(rows, "w"), *others]}
    assert len(hashes) == 1 + len(others)
    assert reference.content_hash(list(rows), "w") in hashes


def test_the_numbers_are_those_of_each_row(start, tiny_llama, tiny_data, tmp_path) -> None:
    """Against transformers, row by row: chosen and rejected by turns, in the order of the data."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start("dpo", max_steps=1)
    found = load_file(tmp_path / "out" / reference.FILE)["logps"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    expected = []
    for row in json.loads((tiny_data / "pairs.json").read_text("utf-8")):
        prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        for answer in (row["chosen"], row["rejected"]):
            ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f"{answer}<|im_end|>")]
            whole = torch.tensor([ids[0] + ids[1]])
            with torch.no_grad():
                logps = model(whole).logits.log_softmax(dim=-1)[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
            expected.append(float(logps[len(ids[0]) - 1 :].sum()))
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
