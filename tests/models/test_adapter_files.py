"""Adapter folders: what peft writes we read, what we write peft reads, everything else is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from posttrain.errors import UserError
from posttrain.models.adapter_files import file_key, read_adapter, write_adapter
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import Backbone, Lineage, write_lineage

torch.set_num_threads(1)

IDS = torch.arange(12).reshape(2, 6)


def llama(kind: type[PreTrainedModel] = LlamaForCausalLM) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    return kind(config).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)).eval()


def lora(**changes: Any) -> LoraConfig:
    options: dict[str, Any] = {"r": 4, "target_modules": ["v_proj", "q_proj"], "init_lora_weights": False}
    return LoraConfig(**(options | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that peft itself wrote."""
    model = get_peft_model(llama(), lora(task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = "some/base"
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)  # else it asks the hub
    return tmp_path / "adapter"


def change(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | options), encoding="utf-8")


def test_what_peft_wrote_is_read(folder: Path) -> None:
    files = read_adapter(folder)
    assert files.config.r == 4
    assert set(files.config.target_modules or ()) == {"q_proj", "v_proj"}
    assert files.base_model_name_or_path == "some/base"
    assert files.head is None
    assert files.lineage is None
    assert len(files.state) == 8
    assert files.state["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (4, 16)


@pytest.mark.parametrize("adapter", ["default", "actor"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 3}, {"rank_pattern": {"q_proj": 2}}])
def test_what_we_write_peft_loads_and_computes_alike(tmp_path: Path, adapter: str, options: dict[str, Any]) -> None:
    config = lora(**options)
    model = get_peft_model(llama(), config, adapter_name=adapter).eval()
    state = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    write_adapter(tmp_path, config, state, base_model_name_or_path="some/base")

    again = PeftModel.from_pretrained(llama(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert not torch.allclose(again(input_ids=IDS).logits, llama()(input_ids=IDS).logits)
    assert again.peft_config["default"].base_model_name_or_path == "some/base"
    assert again.peft_config["default"].task_type == "CAUSAL_LM"


def test_gpt2_and_embedding_adapters_make_the_round_trip(tmp_path: Path) -> None:
    config = lora(target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    model = get_peft_model(gpt2(), config).eval()
    state = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    write_adapter(tmp_path, config, state, base_model_name_or_path="gpt2")
    assert any(name.endswith("wte.lora_embedding_A") for name in load_file(tmp_path / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(gpt2(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_reading_and_writing_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        files = read_adapter(folder)
        write_adapter(tmp_path / name, files.config, files.state, base_model_name_or_path="x")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    written = json.loads((tmp_path / "first" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["target_modules"] == ["q_proj", "v_proj"]
    assert written["inference_mode"] is True


def test_writing_does_not_change_the_configuration(tmp_path: Path) -> None:
    config = lora()
    state = {"m.q_proj.lora_A.weight": torch.ones(1, 2)}
    write_adapter(tmp_path, config, state, base_model_name_or_path="x")
    assert config.inference_mode is False
    assert config.base_model_name_or_path is None


def test_head_and_lineage_come_along(folder: Path) -> None:
    ScalarHead(16, "score").save(folder)
    lineage = Lineage(stage="rm", base=Backbone(name_or_path="x", fingerprint="y"))
    write_lineage(folder, lineage)
    files = read_adapter(folder)
    assert files.head is not None
    assert files.head.hidden_size == 16
    assert files.lineage == lineage


def test_a_sequence_classification_adapter_gives_state_and_head(tmp_path: Path) -> None:
    model = get_peft_model(llama(LlamaForSequenceClassification), lora(task_type=TaskType.SEQ_CLS))
    model.save_pretrained(tmp_path)
    files = read_adapter(tmp_path)
    assert files.head is not None
    assert torch.equal(files.head.weight, model.base_model.model.score.modules_to_save["default"].weight)
    assert all(".lora_" in name for name in files.state)


def test_old_pickled_weights_are_read_without_running_code(folder: Path) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    assert read_adapter(folder).state.keys() == state.keys()
    torch.save({"x": print}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="damaged"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.q.lora_A.weight", "base_model.model.model.q.lora_A.weight"),
        ("model.q.lora_B.actor.weight", "base_model.model.model.q.lora_B.weight"),
        ("base_model.model.model.q.lora_A.default.weight", "base_model.model.model.q.lora_A.weight"),
        ("wte.lora_embedding_A.actor", "base_model.model.wte.lora_embedding_A"),
        ("wte.lora_embedding_B", "base_model.model.wte.lora_embedding_B"),
    ],
)
def test_file_keys(key: str, expected: str) -> None:
    assert file_key(key) == expected
    assert file_key(expected) == expected


def test_two_adapters_in_one_state_are_refused(tmp_path: Path) -> None:
    state = {f"m.lora_A.{name}.weight": torch.ones(1) for name in ("actor", "critic")}
    with pytest.raises(ValueError, match="more than one adapter"):
        write_adapter(tmp_path, lora(), state, base_model_name_or_path="x")
    with pytest.raises(ValueError, match="not the name of a LoRA weight"):
        write_adapter(tmp_path, lora(), {"m.weight": torch.ones(1)}, base_model_name_or_path="x")


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_adapter(tmp_path / "nowhere")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights.*adapter_model\.safetensors"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        read_adapter(folder)


def test_a_whole_model_or_a_run_with_checkpoints_gets_a_hint(tmp_path: Path, folder: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"whole model.*model_name_or_path"):
        read_adapter(tmp_path / "model")
    folder.rename(tmp_path / "run-checkpoint")
    (tmp_path / "run").mkdir()
    (tmp_path / "run-checkpoint").rename(tmp_path / "run" / "checkpoint-20")
    with pytest.raises(UserError, match="checkpoint-20"):
        read_adapter(tmp_path / "run")


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        read_adapter(folder)


def test_other_kinds_of_adapter_are_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(llama(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="peft_type is IA3; only LORA"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bias", "all"),
        ("modules_to_save", ["embed_tokens"]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa_niter_4"),
    ],
)
def test_options_that_do_more_than_add_are_refused(folder: Path, option: str, value: Any) -> None:
    change(folder, **{option: value})
    with pytest.raises(UserError, match=option):
        read_adapter(folder)


def test_options_of_later_versions_are_let_pass(folder: Path) -> None:
    change(folder, some_new_option=3)
    assert read_adapter(folder).config.r == 4
