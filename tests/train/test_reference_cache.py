"""What a reference said is found again by every later run on the same rows and weights, and by no other."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config.home import cache_home
from posttrain.train import reference, reference_cache
from posttrain.train import run as train_run
from posttrain.train.reference_cache import FOLDER, weights_hash


@pytest.fixture
def run(tiny_config, tmp_path, monkeypatch):
    """Train into ``tmp_path/<name>``; says how often the reference was measured."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reference_cache, "SMALLEST", 0)
    measured, measure = [], reference._measured
    monkeypatch.setattr(reference, "_measured", lambda *args: measured.append(1) or measure(*args))

    def train(name, stage="dpo", **keys):
        measured.clear()
        settings = {"save_strategy": "no", "learning_rate": 1e-2, **keys}
        train_run.train(tiny_config(stage, tmp_path / name, **settings))
        return len(measured)

    return train


def stored():
    return sorted((cache_home() / FOLDER).glob("*"))


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_a_second_run_measures_nothing_and_ends_in_the_same_bits(run, tmp_path, stage, capsys) -> None:
    assert run("one", stage) == 1
    assert run("two", stage) == 0
    assert str(stored()[0]) in capsys.readouterr().err
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "two" / reference.FILE).read_bytes() == (tmp_path / "one" / reference.FILE).read_bytes()


def test_what_the_reference_does_not_depend_on_may_change(run) -> None:
    """A new adapter adds nothing at the start, whatever its rank and its seed."""
    assert run("one") == 1
    assert run("two", learning_rate=1e-3, pref_beta=0.5, lora_rank=2, seed=7, per_device_train_batch_size=2) == 0
    assert len(stored()) == 1


@pytest.mark.parametrize("keys", [{"cutoff_len": 24}, {"max_tokens_per_microbatch": 48}, {"adapter": "sft"}])
def test_other_rows_sums_or_adapters_are_measured(run, trained, keys) -> None:
    assert run("one") == 1
    if "adapter" in keys:
        keys = {"adapter_name_or_path": str(trained / keys["adapter"])}
    assert run("two", **keys) == 1
    assert run("three", **keys) == 0
    assert len(stored()) == 2


def test_a_reference_model_of_its_own_is_asked_once(run, trained) -> None:
    assert run("one") == 1
    keys = {"ref_model_adapters": str(trained / "sft")}
    assert run("two", **keys) == 1
    assert run("three", **keys) == 0


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_the_hash_sees_every_bit_of_the_weights(make_model, name) -> None:
    """The fingerprint of lineage rounds to bfloat16: a model after a short fine-tuning would be the same."""
    one, other = make_model(), make_model()
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        weight = other.get_parameter(name)
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert weights_hash(one) != weights_hash(other)


def test_the_hash_sees_precision_and_configuration(make_model) -> None:
    other = make_model()
    other.config.rms_norm_eps *= 2
    hashes = {weights_hash(make_model()), weights_hash(make_model().to(torch.bfloat16)), weights_hash(other)}
    assert len(hashes) == 3


def test_without_cache_ref_logps_nothing_is_kept_or_taken(run) -> None:
    assert run("one", cache_ref_logps=False) == 1
    assert stored() == []
    assert run("two") == 1
    assert run("three", cache_ref_logps=False) == 1


def test_little_work_is_done_again(run, monkeypatch) -> None:
    monkeypatch.setattr(reference_cache, "SMALLEST", 10**10)
    assert run("one") == 1
    assert stored() == []


def test_a_damaged_file_is_measured_anew_and_replaced(run) -> None:
    run("one")
    (file,) = stored()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert run("two") == 1
    assert file.read_bytes() == whole
    file.rename(file.with_name("0" * 64 + ".safetensors"))  # of another key
    assert run("three") == 1


def test_a_cache_that_cannot_be_written_is_said_and_changes_nothing(run, tmp_path, capsys) -> None:
    (tmp_path / "home").write_text("no folder", encoding="utf-8")
    assert run("one") == 1
    assert "POSTTRAIN_HOME names another" in capsys.readouterr().err
    assert (tmp_path / "one" / reference.FILE).is_file()
