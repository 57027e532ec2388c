"""Loading: the right dtype, no dropout on request, and a clear message for every folder that is not a model."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from posttrain.errors import UserError
from posttrain.models.load import choose_dtype, disable_dropout, load_causal_lm, load_tokenizer, quiet

torch.set_num_threads(1)


def llama_config(**changes: object) -> LlamaConfig:
    sizes: dict[str, object] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(sizes | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_loads_in_float32_and_evaluation_mode(folder: Path) -> None:
    model = load_causal_lm(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_the_cpu_uses_float32_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    LlamaForCausalLM(llama_config()).half().save_pretrained(folder)
    with caplog.at_level(logging.WARNING, logger="posttrain"):
        model = load_causal_lm(folder, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "float32 is used" in caplog.text
    assert choose_dtype("auto", "cpu", folder) == (torch.float32, None)


def test_cuda_takes_the_dtype_asked_for_or_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_dtype("auto", "cuda", folder) == (torch.float32, None)
    LlamaForCausalLM(llama_config()).bfloat16().save_pretrained(folder)
    assert choose_dtype("auto", "cuda:1", folder) == (torch.bfloat16, None)
    assert choose_dtype("float16", "cuda", folder) == (torch.float16, None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    dtype, note = choose_dtype("auto", "cuda", folder)
    assert dtype == torch.float16
    assert note is not None
    assert "bfloat16" in note


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_causal_lm(folder)
    assert capfd.readouterr() == ("", "")


def test_quiet_restores_what_it_found() -> None:
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), are_progress_bars_disabled()

    def fail_quietly() -> None:
        with quiet():
            assert not hf_logging.is_progress_bar_enabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_quietly()
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        load_causal_lm(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_causal_lm(tmp_path)


def test_a_damaged_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        load_causal_lm(folder)


def test_an_adapter_given_as_model_gets_the_right_keys(tmp_path: Path) -> None:
    model = get_peft_model(LlamaForCausalLM(llama_config()), LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = "some/base"
    model.save_pretrained(tmp_path, save_embedding_layers=False)  # else it asks the hub for its vocabulary
    with pytest.raises(UserError, match=r"is an adapter.*model_name_or_path: some/base.*adapter_name_or_path"):
        load_causal_lm(tmp_path)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_causal_lm(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_causal_lm(tmp_path)
    shards[-1].unlink()
    with pytest.raises(UserError, match=rf"1 of {len(shards)} weight files are missing, first {shards[-1].name}"):
        load_causal_lm(tmp_path)


def test_damaged_weights_are_one_message(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(folder)


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    LlamaForSequenceClassification(llama_config(num_labels=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 1 of the weights.*lm_head\.weight.*sequence classifier"):
        load_causal_lm(tmp_path)


def test_an_unknown_architecture_is_one_message(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = "vit"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_causal_lm(folder)


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    plain = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == 0


def test_a_missing_or_damaged_tokenizer_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "lora"])
def test_without_dropout_train_mode_computes_what_eval_does(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "gpt2":
        model: torch.nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))
    else:
        model = LlamaForCausalLM(llama_config(attention_dropout=0.5 if kind == "llama" else 0.0))
    if kind == "lora":
        config = LoraConfig(target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
        model = get_peft_model(model, config)
    ids = torch.arange(12).reshape(1, 12)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    expected = model.eval() and logits()
    model.train()
    assert not torch.equal(logits(), expected)  # dropout is at work before
    disable_dropout(model)
    torch.testing.assert_close(logits(), expected)
    assert model.training


def test_a_bare_vocabulary_is_wordpiece(tmp_path: Path) -> None:
    """As folders of Chinese GPT-2 models come: the model's own class would know no word of it."""
    GPT2Config(n_embd=8, n_layer=1, n_head=1, architectures=["RewardModel"]).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "好", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("你好a").input_ids == [2, 5, 6, 7, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("[PAD]", "[SEP]")
