"""Keys that change the course of a run: each by its trace in the run directory."""

import json

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import UserError
from posttrain.train.run import train


def lines(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def steps_of(tiny_config, tmp_path):
    """(steps with a training line, steps with an evaluation) of an SFT run of 6 steps, 3 an epoch."""

    def run(**keys):
        folder = tmp_path / "out"
        base = {"num_train_epochs": 2, "save_strategy": "no", "overwrite_output_dir": True}
        train(tiny_config("sft", folder, **{**base, "val_size": 2, **keys}))
        found = lines(folder)
        trained = [line["current_steps"] for line in found if "loss" in line]
        return trained, [line["current_steps"] for line in found if "eval_loss" in line]

    return run


def test_evaluation_before_the_first_step(steps_of):
    assert steps_of()[1] == [6]
    assert steps_of(eval_on_start=True)[1] == [0, 6]


def test_evaluations_wait(steps_of):
    every = {"eval_strategy": "steps", "eval_steps": 1}
    assert steps_of(**every)[1] == [1, 2, 3, 4, 5, 6]
    assert steps_of(**every, eval_delay=4)[1] == [4, 5, 6]
    assert steps_of(eval_strategy="epoch", eval_delay=2)[1] == [6]


def test_when_training_is_logged(steps_of):
    assert steps_of(logging_steps=2)[0] == [2, 4, 6]
    assert steps_of(logging_strategy="epoch")[0] == [3, 6]
    assert steps_of(logging_strategy="no") == ([], [6])


def losses(folder):
    return [line["loss"] for line in lines(folder) if "loss" in line]


def test_noise_changes_training_and_repeats(tiny_config, tmp_path):
    keys = {"save_strategy": "no", "learning_rate": 1e-2}
    for name, alpha in (("plain", None), ("noisy", 10.0), ("again", 10.0)):
        train(tiny_config("sft", tmp_path / name, neftune_noise_alpha=alpha, **keys))
    assert losses(tmp_path / "noisy") == losses(tmp_path / "again")
    assert losses(tmp_path / "noisy")[0] != losses(tmp_path / "plain")[0]


def test_dynamic_fine_tuning_is_another_loss(tiny_config, tmp_path):
    train(tiny_config("sft", tmp_path / "plain", save_strategy="no"))
    train(tiny_config("sft", tmp_path / "dft", save_strategy="no", use_dft_loss=True))
    first = next(line for line in lines(tmp_path / "dft") if "loss" in line)
    assert first["nll"] == pytest.approx(losses(tmp_path / "plain")[0], rel=1e-5)
    assert first["loss"] < 0.5 * first["nll"]


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_reference_of_its_own(tiny_config, tiny_llama, trained, tmp_path, stage):
    """The reference is the base, the policy an adapter on it: step 0 shows how far apart they are."""
    keys = {"save_strategy": "no", "max_steps": 1, "learning_rate": 0.0, "adapter_name_or_path": str(trained / "sft")}
    train(tiny_config(stage, tmp_path / "own", **keys))
    train(tiny_config(stage, tmp_path / "other", ref_model=str(tiny_llama), **keys))
    train(tiny_config(stage, tmp_path / "same", ref_model_adapters=str(trained / "sft"), **keys))
    own, other, same = (
        load_file(tmp_path / name / "reference_logps.safetensors")["logps"] for name in ("own", "other", "same")
    )
    torch.testing.assert_close(same, own, rtol=1e-4, atol=1e-4)
    assert (other - own).abs().min() > 0.01
    train(tiny_config(stage, tmp_path / "fewer", ref_model=str(tiny_llama), ref_model_quantization_bit=8, **keys))
    rounded = load_file(tmp_path / "fewer" / "reference_logps.safetensors")["logps"]
    assert 0 < (rounded - other).abs().max() < 1
    plain, apart = (next(line for line in lines(tmp_path / name) if "loss" in line) for name in ("own", "other"))
    assert plain["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert abs(apart["rewards/chosen"]) > 0.1


def test_a_reference_that_cannot_be(tiny_config, trained, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        train(tiny_config("dpo", tmp_path / "out", ref_model=str(tmp_path / "nowhere")))
