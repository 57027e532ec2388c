"""Fingerprints see the base weights and nothing else; lineage survives the round trip and names what differs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.errors import UserError
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import (
    Backbone,
    Lineage,
    Parent,
    adapter_fingerprint,
    check_backbone,
    check_template,
    fingerprint,
    read_lineage,
    write_lineage,
)

torch.set_num_threads(1)


def llama(seed: int = 0, *, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def stored_as(model: LlamaForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    return model.to(dtype).float()


LINEAGE = Lineage(
    stage="rm",
    base=Backbone(name_or_path="some/base", fingerprint="a" * 64),
    parents=(Parent(path="输出/sft", fingerprint="b" * 64),),
    template="c" * 64,
)


def test_the_same_weights_have_the_same_fingerprint_and_others_another() -> None:
    assert fingerprint(llama()) == fingerprint(llama())
    assert fingerprint(llama()) != fingerprint(llama(1))
    assert len(fingerprint(llama())) == 64


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loaded", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_same_in_any_dtype(stored: torch.dtype, loaded: torch.dtype) -> None:
    full = fingerprint(stored_as(llama(), stored))
    assert fingerprint(stored_as(llama(), stored).to(loaded)) == full


def test_float32_weights_are_the_same_in_bfloat16() -> None:
    assert fingerprint(llama().bfloat16()) == fingerprint(llama())


@given(st.lists(st.floats(-200, 200, width=16), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_float16_value_reads_the_same_in_every_dtype(values: list[float]) -> None:
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([values])
    prints = {fingerprint(layer)} | {fingerprint(layer.to(dtype)) for dtype in (torch.float16, torch.bfloat16)}
    assert len(prints) == 1


def test_one_changed_tensor_is_seen() -> None:
    for name, _ in llama().named_parameters():
        changed = llama()
        changed.get_parameter(name).data.mul_(1.5).add_(0.25)
        assert fingerprint(changed) != fingerprint(llama()), name


def test_a_large_tensor_is_sampled_over_its_whole_length() -> None:
    layer = nn.Linear(100, 1000)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.weight[-100:] += 1.0
    assert fingerprint(layer) != before


def test_names_and_shapes_count() -> None:
    a, b = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
    b.weight.data = a.weight.data.reshape(4, 2)
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(nn.Sequential(a)) != fingerprint(a)


def test_adapters_and_heads_do_not_matter() -> None:
    bare = fingerprint(llama())
    config = LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    wrapped = get_peft_model(llama(), config)
    assert fingerprint(wrapped) == bare
    wrapped.add_adapter("second", config)
    assert fingerprint(wrapped) == bare
    assert fingerprint(wrapped.base_model.model) == bare
    model = llama()
    model.v_head = ScalarHead(32, "value")
    assert fingerprint(model) == bare


def test_saved_modules_do_not_matter() -> None:
    wrapped = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    wrapped.base_model.model.lm_head.modules_to_save["default"].weight.data.zero_()
    assert fingerprint(wrapped) == fingerprint(llama())


def test_a_merged_model_is_another() -> None:
    wrapped = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert fingerprint(wrapped.merge_and_unload()) != fingerprint(llama())


def test_saving_and_loading_keeps_it(tmp_path: Path) -> None:
    model = llama(tied=True)
    model.save_pretrained(tmp_path)
    assert fingerprint(LlamaForCausalLM.from_pretrained(tmp_path)) == fingerprint(model)


def test_a_model_without_weights_has_none() -> None:
    with pytest.raises(ValueError, match="no base weights"):
        fingerprint(nn.ReLU())


def test_adapter_fingerprints_see_every_value() -> None:
    state = {"m.lora_A.weight": torch.randn(8, 1000), "m.lora_B.weight": torch.zeros(1000, 8)}
    before = adapter_fingerprint(state)
    assert adapter_fingerprint(dict(reversed(state.items()))) == before
    assert adapter_fingerprint({**state, "score.weight": torch.ones(1)}) == before
    nudged = state["m.lora_B.weight"].clone()
    nudged[997, 3] = 1e-7
    assert adapter_fingerprint({**state, "m.lora_B.weight": nudged}) != before
    assert adapter_fingerprint({"n.lora_A.weight": state["m.lora_A.weight"]}) != adapter_fingerprint(
        {"m.lora_A.weight": state["m.lora_A.weight"]}
    )


def test_lineage_round_trip(tmp_path: Path) -> None:
    write_lineage(tmp_path, LINEAGE)
    assert read_lineage(tmp_path) == LINEAGE
    assert [path.name for path in tmp_path.iterdir()] == ["lineage.json"]
    assert "输出/sft" in (tmp_path / "lineage.json").read_text(encoding="utf-8")


def test_no_file_is_no_lineage(tmp_path: Path) -> None:
    assert read_lineage(tmp_path) is None


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    write_lineage(tmp_path, LINEAGE)
    path = tmp_path / "lineage.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["later"] = content["base"]["later"] = content["parents"][0]["later"] = 1
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_lineage(tmp_path) == LINEAGE


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"stage": "rm", "base": {"name_or_path": "x"}}', '{"base": 3}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "lineage.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"lineage\.json is damaged"):
        read_lineage(tmp_path)


def test_another_backbone_is_refused_naming_both_and_the_key() -> None:
    with pytest.raises(
        UserError, match=r"reward_model: out/rm was.*some/base.*aaaa.*merged.*dddd.*allow_mismatch: true"
    ):
        check_backbone(LINEAGE, "d" * 64, folder="out/rm", key="reward_model", backbone="merged")


def test_the_same_or_an_unknown_backbone_passes() -> None:
    assert check_backbone(LINEAGE, "a" * 64, folder="out/rm", key="reward_model") is None
    assert check_backbone(None, "a" * 64, folder="out/rm", key="reward_model") is None


def test_allow_mismatch_turns_the_refusal_into_a_warning() -> None:
    warning = check_backbone(LINEAGE, "d" * 64, folder="out/rm", key="reward_model", allow_mismatch=True)
    assert warning is not None
    assert "used all the same" in warning


def test_another_template_is_refused() -> None:
    with pytest.raises(UserError, match=r"reward_model: out/rm was trained with another chat template.*allow_mismatch"):
        check_template(LINEAGE, "d" * 64, folder="out/rm", key="reward_model")
    assert check_template(LINEAGE, "c" * 64, folder="out/rm", key="reward_model") is None
    assert check_template(LINEAGE, None, folder="out/rm", key="reward_model") is None
    shown = dataclasses.replace(LINEAGE, template_example="<u>q<a>")
    assert check_template(shown, "d" * 64, folder="f", key="k", example="<u>q<a>") is None
    with pytest.raises(UserError, match=r'"<u>q<a>"\n.*"U: q"'):
        check_template(shown, "d" * 64, folder="f", key="k", example="U: q")
    assert check_template(LINEAGE, "d" * 64, folder="out/rm", key="reward_model", allow_mismatch=True) is not None
