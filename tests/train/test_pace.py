"""What a run says of its own work, against what torch counts while it runs, and against the formulas."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.engine import Limits
from posttrain.models import assembly, roles
from posttrain.models.work import Work
from posttrain.train import run as train_run
from posttrain.train.pace import Pace, statistics

aten = torch.ops.aten
CLOSE = 0.005


def attention_flops(query, key, value, *args, out_shape=None, **kwargs):
    """Scores and weighted values of one attention; torch counts this kernel on the GPU only."""
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[2] * width


def attention_backward_flops(grad, query, key, value, *args, out_shape=None, **kwargs):
    """Scores again, and the gradients of values, weights, queries and keys: five products."""
    return attention_flops(query, key, value) * 5 // 2


def product_in_place_flops(out, left, right, *args, out_shape=None, **kwargs):
    """A product that is added to what is there; torch counts it only where the result is new."""
    return 2 * left[0] * left[1] * right[1]


MAPPING = {
    aten.addmm_: product_in_place_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


@pytest.fixture
def torch_counts(monkeypatch):
    """Phase -> operations that torch counts while the phase is open."""
    counts = {}
    phase = Pace.phase

    @contextmanager
    def counted(pace, name):
        with phase(pace, name), FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
            yield
        counts[name] = counts.get(name, 0) + counter.get_total_flops()

    monkeypatch.setattr(Pace, "phase", counted)
    return counts


@pytest.fixture
def uneven_data(tmp_path):
    """Rows of very different lengths, as real data has them."""
    fruit = ["fig", "plum pear lime", "kiwi date " * 5, "grape mango berry melon " * 4]
    chats = [{"instruction": f"name {fruit[i % 4]}", "output": fruit[(i * 3 + 1) % 4]} for i in range(12)]
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "no " + fruit[i % 4]}
        for i, row in enumerate(chats)
    ]
    judged = [{**row, "kto_tag": i % 2 == 0} for i, row in enumerate(chats)]
    for name, rows in (("sft", chats), ("rm", pairs), ("dpo", pairs), ("kto", judged), ("ppo", chats), ("grpo", chats)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture(scope="module")
def wide_llama(tiny_llama, tmp_path_factory):
    """Two layers of width 256: as in models that are used, most of a token's work is in linear layers."""
    folder = tmp_path_factory.mktemp("wide") / "wide-llama"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").unlink()
    config = LlamaConfig.from_pretrained(tiny_llama, hidden_size=256, intermediate_size=704, head_dim=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(tiny_config, trained, uneven_data, tmp_path):
    """Run a stage with default keys; returns its results."""

    def run(stage, **keys):
        keys = {"dataset": str(uneven_data / f"{stage}.json"), "cutoff_len": 160, "save_strategy": "no", **keys}
        if stage in ("ppo", "grpo"):
            keys = {"reward_model": str(trained / "rm"), "max_new_tokens": 16, **keys}
        return train_run.train(tiny_config(stage, tmp_path / "out", **keys))

    return run


KINDS = {
    "sft": {},
    "sft, all weights": {"finetuning_type": "full"},
    "sft, the top layer": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "sft, some layers": {"lora_target": "o_proj,up_proj"},
    "sft, checkpointing": {"gradient_checkpointing": True},
    "sft, all weights, checkpointing": {"gradient_checkpointing": True, "finetuning_type": "full"},
    "sft, on an adapter": {"adapter": True},
    "sft, the top layer's adapters": {"trainable_layers": 1},
    "rm": {},
    "dpo": {},
    "kto": {},
    "ppo": {"num_return_sequences": 2},
    "ppo, its own critic": {"critic": "adapter"},
    "ppo, the top layer's adapters": {"trainable_layers": 1},
    "ppo, entropy": {"entropy_coef": 0.01},
    "grpo": {"num_return_sequences": 4},
}


@pytest.mark.parametrize("keys", [{"finetuning_type": "full"}, {"lora_target": "q_proj"}, {}])
def test_operations_are_those_that_torch_counts_where_products_are_large(run, wide_llama, torch_counts, keys) -> None:
    """Recomputing a layer stops before its last product where that is torch's, and after it where it is ours."""
    results = run("sft", model_name_or_path=str(wide_llama), gradient_checkpointing=True, **keys)
    assert results["train_flops"] == pytest.approx(torch_counts["train"], rel=CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(run, trained, torch_counts, monkeypatch, kind) -> None:
    monkeypatch.setattr(roles, "runs_in_parts", lambda model, depth: True)  # torch would count the trial, too
    stage, keys = kind.split(",")[0], dict(KINDS[kind])
    if keys.pop("adapter", False):
        keys |= {"adapter_name_or_path": str(trained / "sft"), "create_new_adapter": True}
    results = run(stage, **keys)
    counted = {name: results.get(f"{name}_flops", 0) for name in ("score", "train")}
    # adapters are merged for sampling, which belongs to neither of its parts
    counted["generate"] = sum(results.get(f"{name}_flops", 0) for name in ("generate", "prefill", "decode"))
    assert torch_counts.keys() == ({"train", "score", "generate"} if stage in ("ppo", "grpo") else {"train"})
    for phase, number in torch_counts.items():
        assert counted[phase] == pytest.approx(number, rel=CLOSE), phase


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_operations_of_padded_batches_too(run, torch_counts, monkeypatch, stage) -> None:
    monkeypatch.setattr(assembly, "prepare_trunk", lambda model: False)
    results = run(stage)
    assert results["train_flops"] == pytest.approx(torch_counts["train"], rel=CLOSE)
    assert results["train_padding_ratio"] > 1.1


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo", "kto", "ppo", "grpo"])
def test_default_runs_compute_little_more_than_they_must(run, wide_llama, stage) -> None:
    group = {"ppo": {"per_device_train_batch_size": 4}, "grpo": {"num_return_sequences": 8}}.get(stage, {})
    sampled = {
        "reward_model": None,
        "reward_funcs": "length:2-6",
        "lora_rank": 1,
        "per_device_train_batch_size": 8,
        **group,
    }
    results = run(stage, model_name_or_path=str(wide_llama), **(sampled if group else {}))
    for phase in ("train", "score", "prefill", "decode") if group else ("train",):
        assert 0.95 < results[f"{phase}_flops_of_ideal"] <= 1.1, phase
        assert results[f"{phase}_padding_ratio"] == 1.0, phase
    assert results["flops_of_ideal"] <= 1.1


def test_prompts_computed_again_are_seen(run, wide_llama, monkeypatch) -> None:
    """Proof that the test above would notice."""
    from posttrain.models import forward, packing

    monkeypatch.setattr(forward, "packed", lambda batch: packing.packed(batch, share_prefixes=False))
    assert run("rm", model_name_or_path=str(wide_llama))["train_flops_of_ideal"] > 1.1


def test_the_log_has_what_each_step_took(run, tmp_path) -> None:
    results = run("ppo", measure_limits=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    names = ("x_of_limit", "tokens_per_second")
    for phase in ("train", "score", "prefill", "decode", "generate"):
        for line in (lines[1], results):
            assert all(line[f"{phase}_{name}"] > 0 for name in names), phase
    for line in (lines[1], results):
        assert line["x_of_limit"] > 1
        assert line["seconds_prefill"] + line["seconds_decode"] < line["seconds_generate"]
    assert results["limit_flops_per_second"] > 1e9
    assert results["limit_bytes_per_second"] > 1e9
    per_step = [line["train_flops_of_ideal"] for line in lines if "loss" in line]
    assert min(per_step) <= results["train_flops_of_ideal"] <= max(per_step)


def test_small_models_are_not_measured_unasked(run) -> None:
    results = run("sft")
    assert not [name for name in results if "limit" in name]
    assert results["train_flops_of_ideal"] > 0.9


def test_a_resumed_run_goes_on_counting(run, tmp_path, tiny_config, uneven_data) -> None:
    whole = run("sft", max_steps=3)
    keys = {"dataset": str(uneven_data / "sft.json"), "cutoff_len": 160, "max_steps": 3, "save_steps": 1}
    train_run.train(tiny_config("sft", tmp_path / "cut", **{**keys, "max_steps": 2, "lr_scheduler_type": "constant"}))
    resumed = train_run.train(
        tiny_config("sft", tmp_path / "cut", **keys, lr_scheduler_type="constant", resume_from_checkpoint=True)
    )
    for name in ("train_flops", "train_ideal_flops", "train_padding_ratio"):
        assert resumed[name] == whole[name], name
    assert type(resumed["train_flops"]) is int


def test_sums_of_a_checkpoint_are_taken_up() -> None:
    first, second = Pace(), Pace()
    step = Work(flops=5, ideal_flops=4, positions=3, held=3, tokens=9, steps={2: [4, 10]}, seconds=0.5)
    first.totals["decode"].add(step)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.totals == first.totals
    second.totals["decode"].add(step)
    assert second.totals["decode"].steps == {2: [8, 20]}
    assert first.totals["decode"].steps == {2: [4, 10]}


def test_time_is_set_against_arithmetic_or_memory_whichever_is_slower() -> None:
    """10 operations and 4 bytes a second: steps of 1 slot wait for 8 bytes, those of 9 for 90 operations."""
    machine = Limits(flops_per_second=10, bytes_per_second=4)
    decode = Work(ideal_flops=100, flops=110, steps={1: [10, 8], 9: [90, 12]}, seconds=22.0, tokens=10, held=1)
    assert machine.seconds(decode) == 2 + 9
    train = Work(ideal_flops=30, flops=33, positions=6, held=4, tokens=6, seconds=6.0)
    found = statistics({"generate": Work(seconds=30.0, tokens=11), "decode": decode, "train": train}, machine)
    assert found["decode_x_of_limit"] == 2
    assert found["generate_x_of_limit"] == pytest.approx(30 / 11)
    assert found["train_x_of_limit"] == 2
    assert found["x_of_limit"] == pytest.approx(36 / 14)
    assert found["train_padding_ratio"] == 1.5
    assert found["train_flops_of_ideal"] == pytest.approx(1.1)
    assert found["flops_of_ideal"] == pytest.approx(143 / 130)
    assert found["decode_tokens_per_second"] == pytest.approx(10 / 22)
    assert found["tokens_per_second"] == pytest.approx(6 / 36)
