"""Adapters on the last layers alone: whole runs with the states below kept, against runs that compute them again."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from posttrain.engine import Engine
from posttrain.errors import UserError
from posttrain.models.adapter_files import read_adapter
from posttrain.models.export import export_model
from posttrain.models.load import load_causal_lm
from posttrain.train.run import train

ONLINE = {
    "max_tokens_per_microbatch": 45,
    "num_train_epochs": 2,
    "ppo_epochs": 3,
    "save_strategy": "no",
    "num_return_sequences": 2,
}


@pytest.fixture(scope="module")
def top_reward(tiny_config, tmp_path_factory):
    """A reward model with adapters on the last layer."""
    folder = tmp_path_factory.mktemp("top") / "rm"
    train(tiny_config("rm", folder, learning_rate=2e-2, trainable_layers=1, save_strategy="no"))
    return folder


@pytest.fixture
def online(tiny_config, top_reward, trained, tmp_path, monkeypatch):
    """Run an online stage; returns its log and its trained weights. ``keeps`` False computes every layer each time."""

    def run(name, *, keeps=True, stage="ppo", reward=None, **keys):
        keys = {**ONLINE, "reward_model": str(reward or top_reward), **keys}
        if keys.get("finetuning_type", "lora") == "lora":
            keys.setdefault("trainable_layers", 1)
        with monkeypatch.context() as patch:
            own, kept = Engine.with_lower_states, []

            def counted(engine, batch):
                kept.append(own(engine, batch).lower_states if keeps else ())
                return batch.with_columns(lower_states=kept[-1])

            patch.setattr(Engine, "with_lower_states", counted)
            train(tiny_config(stage, tmp_path / name, **keys))
            assert [bool(rows) for rows in kept] == [keeps] * len(kept) != []
        return log_of(tmp_path / name), weights_of(tmp_path / name)

    return run


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines
    return lines


def weights_of(folder):
    names = ("adapter_model.safetensors", "model.safetensors")
    return load_file(next(folder / name for name in names if (folder / name).exists()))


CASES = {
    "value head": {},
    "critic of its own": {"critic": "adapter"},
    "reward on all layers": {"critic": "adapter", "reward": "rm"},
    "parents": {"adapter_name_or_path": "sft"},
    "parents that the reward lacks": {"adapter_name_or_path": "sft", "critic": "adapter", "reward": "rm"},
    "checkpointing": {"gradient_checkpointing": True},
    "DoRA": {"use_dora": True},
    "grpo": {"stage": "grpo"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "critic": "model"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_keeps_equals_one_that_computes(online, trained, case) -> None:
    """Every logged number of two iterations of three epochs, and the weights that come out."""
    keys = {k: str(trained / v) if k in ("reward", "adapter_name_or_path") else v for k, v in CASES[case].items()}
    (kept, weights), (computed, expected) = online("kept", **keys), online("computed", keeps=False, **keys)
    timed = ("second", "time", "memory", "runtime", "rss", "flop")
    for mine, other in zip(kept, computed, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if isinstance(value, float) and not any(word in name for word in timed):
                assert value == pytest.approx(other[name], abs=1e-5, rel=1e-4), name
    assert weights.keys() == expected.keys() != set()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)


def test_a_resumed_run_is_the_same_bit_by_bit(online, tiny_config, top_reward, tmp_path) -> None:
    keys = {"save_strategy": "steps", "save_steps": 1}
    _, expected = online("whole", **keys)
    config = tiny_config(
        "ppo",
        tmp_path / "resumed",
        **{**ONLINE, **keys, "reward_model": str(top_reward), "trainable_layers": 1},
        resume_from_checkpoint=str(sorted((tmp_path / "whole").glob("checkpoint-*"))[0]),
    )
    train(config)
    found = weights_of(tmp_path / "resumed")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert found.keys() == expected.keys() != set()


def test_what_is_kept_is_gone_after_the_iteration(make_online_run, top_reward, notebook) -> None:
    from posttrain.train import online

    seen = []
    run, total = make_online_run(
        {"record": lambda iteration, batch: seen.append(batch.lower_states)},
        reward_model=str(top_reward),
        trainable_layers=1,
    )
    online.fit(run, total, notebook(), lambda *_: None)
    assert seen
    assert set(seen) == {()}


def test_the_adapter_loads_in_peft_and_merges(tiny_config, tiny_llama, trained, tmp_path) -> None:
    """``layers_to_transform`` is in its configuration; export adds it to the base as peft does; it can be a parent."""
    train(tiny_config("sft", tmp_path / "sft", trainable_layers=1, learning_rate=2e-2, save_strategy="no"))
    config = json.loads((tmp_path / "sft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["layers_to_transform"] == [1]
    state = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert all(".layers.1." in name for name in state)
    merged = PeftModel.from_pretrained(load_causal_lm(tiny_llama), tmp_path / "sft").merge_and_unload()
    from posttrain.config import load_config

    keys = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(tmp_path / "sft")}
    export_model(load_config({**keys, "export_dir": str(tmp_path / "whole")}, command="export"))
    exported = load_causal_lm(tmp_path / "whole")
    ids = torch.arange(9, 30)[None]
    torch.testing.assert_close(exported(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(exported(ids).logits, load_causal_lm(tiny_llama)(ids).logits, atol=1e-3)
    upon = {"adapter_name_or_path": str(tmp_path / "sft"), "create_new_adapter": True, "save_strategy": "no"}
    train(tiny_config("sft", tmp_path / "upon", **upon))
    assert read_adapter(tmp_path / "upon").config.layers_to_transform is None


def test_continuing_says_what_it_ignores(tiny_config, trained, tmp_path) -> None:
    from posttrain.models.assemble import offline_assembly

    keys = {"adapter_name_or_path": str(trained / "sft"), "trainable_layers": 0.5}
    assembly = offline_assembly(tiny_config("sft", tmp_path / "out", **keys))
    assert any("trainable_layers: 1 changes nothing" in note and "which has 2" in note for note in assembly.notes)
    assembly = offline_assembly(tiny_config("sft", tmp_path / "out", **{**keys, "trainable_layers": 2}))
    assert not any("trainable_layers" in note for note in assembly.notes)


def test_more_layers_than_there_are(tiny_config, tmp_path) -> None:
    with pytest.raises(UserError, match="trainable_layers is 3, but LlamaForCausalLM has 2 layers"):
        train(tiny_config("sft", tmp_path / "out", trainable_layers=3))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"trainable_layers": 0}, "must be above 0"),
        ({"trainable_layers": -1}, "must be above 0"),
        ({"trainable_layers": 1.5}, "neither a number of layers nor a share of them; write 1"),
        ({"trainable_layers": "1/3"}, "must be a number"),
        ({"trainable_layers": 1, "finetuning_type": "full"}, "finetuning_type: full has none"),
        ({"trainable_layers": 1, "finetuning_type": "freeze"}, "there it is freeze_trainable_layers"),
    ],
)
def test_values_that_mean_nothing(tiny_config, tmp_path, keys, said) -> None:
    with pytest.raises(UserError, match=said):
        tiny_config("sft", tmp_path / "out", **keys)
