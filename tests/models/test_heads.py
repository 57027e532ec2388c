"""Scalar heads: float32 throughout, and readable from every layout that users have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from posttrain.errors import UserError
from posttrain.models.heads import ScalarHead, find_head
from posttrain.types import Batch

torch.set_num_threads(1)


def head_of(weight: list[float], bias: float = 0.0) -> ScalarHead:
    head = ScalarHead(len(weight), "value")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([weight]))
        head.bias.fill_(bias)
    return head


def classifier(labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


def test_it_is_a_dot_product_plus_bias() -> None:
    # 1*2 + 2*(-1) + 0.5 = 0.5 ; 0*2 + 3*(-1) + 0.5 = -2.5
    hidden = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
    assert head_of([2.0, -1.0], 0.5)(hidden).tolist() == [[0.5, -2.5]]


def test_a_score_trains_its_weight_only_and_a_value_starts_at_zero() -> None:
    score, value = ScalarHead(16, "score", generator=torch.Generator().manual_seed(1)), ScalarHead(16, "value")
    assert [name for name, _ in score.named_parameters()] == ["weight"]
    assert [name for name, _ in value.named_parameters()] == ["weight", "bias"]
    assert set(score.state_dict()) == set(value.state_dict()) == {"weight", "bias"}
    assert score.weight.std() > 0
    assert value(torch.randn(3, 16)).tolist() == [0.0, 0.0, 0.0]


def test_the_same_generator_gives_the_same_head() -> None:
    first, second = (ScalarHead(8, "score", generator=torch.Generator().manual_seed(5)).weight for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_stays_in_float32(dtype: torch.dtype) -> None:
    head = head_of([1 / 3, 1e-4], 1e-3)
    before = head.weight.clone()
    head.to(dtype)
    assert head.weight.dtype == head.bias.dtype == torch.float32
    assert torch.equal(head.weight, before)
    hidden = torch.randn(4, 2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(hidden)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, hidden.float() @ before[0] + 1e-3)


def test_it_moves_between_devices() -> None:
    assert head_of([1.0]).to("meta").weight.device.type == "meta"


def test_rescaled_answers_the_affine_image() -> None:
    old, hidden = head_of([2.0, -1.0], 0.5), torch.randn(5, 2)
    new = old.rescaled(3.0, -0.25)
    torch.testing.assert_close(new(hidden), 3.0 * old(hidden) - 0.25)
    assert new.kind == "value"
    assert new.bias.requires_grad
    new(hidden).sum().backward()
    assert old.weight.grad is None


def test_saved_in_llamafactorys_layout_and_read_back(tmp_path: Path) -> None:
    head = head_of([1 / 3, -2.0, 0.5], 0.25)
    head.save(tmp_path)
    with safe_open(tmp_path / "value_head.safetensors", framework="pt") as file:
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118
            "v_head.summary.weight": (1, 3),
            "v_head.summary.bias": (1,),
        }
    assert [path.name for path in tmp_path.iterdir()] == ["value_head.safetensors"]
    again = ScalarHead.load(tmp_path, 3)
    assert again.kind == "score"
    hidden = torch.randn(4, 3)
    assert torch.equal(again(hidden), head(hidden))


def test_llamafactorys_old_format_is_read_without_running_code(tmp_path: Path) -> None:
    weight, bias = torch.tensor([[1.0, 2.0]]).half(), torch.tensor([3.0]).half()
    torch.save({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, tmp_path / "value_head.bin")
    assert ScalarHead.load(tmp_path, 2)(torch.ones(2)).item() == 6.0
    torch.save({"v_head.summary.weight": print}, tmp_path / "value_head.bin")
    with pytest.raises(UserError, match=r"value_head\.bin is damaged"):
        ScalarHead.load(tmp_path, 2)


def test_a_peft_sequence_classifier_is_read(tmp_path: Path) -> None:
    model = get_peft_model(classifier(), LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    trained = model.base_model.model.score.modules_to_save["default"].weight
    assert torch.equal(ScalarHead.load(tmp_path, 16).weight, trained)


@pytest.mark.parametrize("shard", ["5GB", "2KB"])
def test_a_sequence_classifier_folder_is_read(tmp_path: Path, shard: str) -> None:
    model = classifier()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").is_file() == (shard == "5GB")
    head = ScalarHead.load(tmp_path, 16)
    assert torch.equal(head.weight, model.score.weight)
    assert head.bias.item() == 0.0


def test_gpt2_classifiers_too(tmp_path: Path) -> None:
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, num_labels=1))
    model.save_pretrained(tmp_path)
    assert torch.equal(ScalarHead.load(tmp_path, 16).weight, model.score.weight)


def test_our_file_wins_over_the_adapters(tmp_path: Path) -> None:
    save_file({"base_model.model.score.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    head_of([5.0, 5.0]).save(tmp_path)
    assert ScalarHead.load(tmp_path, 2).weight.tolist() == [[5.0, 5.0]]


def test_a_missing_head_names_folder_files_and_fix(tmp_path: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    assert find_head(tmp_path) is None
    with pytest.raises(UserError, match=r"has no score head.*value_head\.safetensors.*reward stage") as error:
        ScalarHead.load(tmp_path, 2)
    assert str(tmp_path) in str(error.value)


def test_another_hidden_size_names_both(tmp_path: Path) -> None:
    head_of([1.0, 2.0]).save(tmp_path)
    with pytest.raises(UserError, match=r"hidden size 2.*has 3"):
        ScalarHead.load(tmp_path, 3)


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    classifier(labels=3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"shape \(3, 16\)"):
        ScalarHead.load(tmp_path, 16)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "value_head.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"value_head\.safetensors is damaged"):
        ScalarHead.load(tmp_path, 2)


def test_a_sequence_is_scored_at_its_last_token_that_is_not_skipped() -> None:
    ids = torch.tensor([[5, 6, 7, 7], [5, 7, 6, 0], [7, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    batch = Batch(input_ids=ids, attention_mask=mask, loss_mask=mask)
    head = head_of([1.0])
    assert head.ends(batch).tolist() == [3, 2, 1]
    head.skips = 7
    assert head.ends(batch).tolist() == [1, 2, 0]
